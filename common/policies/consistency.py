"""The head of a latent consistency model around a policy: what RLCM trains, with the `Consistency` noise rule."""

from __future__ import annotations

from torch import Tensor

from drover.common.diffusion.noising import over
from drover.common.diffusion.prediction import consistency_x0
from drover.common.errors import ConfigError
from drover.common.policies.wrapped import Wrapped
from drover.common.protocols import Conditioning, Prediction


class ConsistencyHead(Wrapped):
    """``ConsistencyHead(StableDiffusion.load("SimianLuo/LCM_Dreamshaper_v7", embedded_scale=8.0))``."""

    def predict(self, x: Tensor, time: Tensor, cond: Conditioning) -> Prediction:
        """x0 of the head, and the noise that belongs to it: x = a x0 + s noise still holds."""
        x0 = consistency_x0(x, self.policy.predict(x, time, cond).x0, time)
        a, s = (over(coefficient, x) for coefficient in self.schedule.coefficients(time))
        return Prediction(x0=x0, noise=(x - a * x0) / s)

    def target(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Refused: it pulls x0 to the mean of all pictures that fit x, where a consistency model names one of them."""
        raise ConfigError(
            "a consistency model was distilled, not trained to denoise, and the denoising loss would undo that; "
            "leave the pretraining mix out, or train the model it was distilled from"
        )
