"""The head of a latent consistency model around a policy, as RLCM trains it with the `Consistency` noise rule."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from drover.common.diffusion.noising import DiscreteSchedule, over
from drover.common.diffusion.prediction import consistency_x0
from drover.common.errors import ConfigError
from drover.common.policies.wrapped import Wrapped
from drover.common.protocols import Conditioning, Policy, Prediction

if TYPE_CHECKING:
    from torch import Tensor


class ConsistencyHead(Wrapped):
    """A policy whose x0 comes from the head of a latent consistency model.

    Example: ``ConsistencyHead(StableDiffusion.load("SimianLuo/LCM_Dreamshaper_v7", embedded_scale=8.0))``.
    Its path always ends clean, even if that of the checkpoint's scheduler does not: the last step gives the predicted x0.
    """

    def __init__(self, policy: Policy, *, time_scaling: float = 10.0) -> None:
        """``time_scaling`` is passed to `consistency_x0`; diffusers' LCMScheduler calls it timestep_scaling."""
        super().__init__(policy)
        if isinstance(policy.schedule, DiscreteSchedule):
            self.schedule = replace(policy.schedule, final="clean")
        self._time_scaling = time_scaling

    def predict(self, x: Tensor, time: Tensor, cond: Conditioning) -> Prediction:
        """x0 of the head, and the noise that belongs to it: x = a x0 + s noise still holds."""
        predicted = self.policy.predict(x, time, cond).x0
        x0 = consistency_x0(x, predicted, time, time_scaling=self._time_scaling)
        a, s = (over(coefficient, x) for coefficient in self.schedule.coefficients(time))
        return Prediction(x0=x0, noise=(x - a * x0) / s)

    def target(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Raises `ConfigError`: the target pulls x0 to the mean of all pictures that fit x, but the head predicts one."""
        raise ConfigError(
            "a consistency model was distilled, not trained to denoise, and the denoising loss would undo that; "
            "leave the pretraining mix out, or train the model it was distilled from"
        )
