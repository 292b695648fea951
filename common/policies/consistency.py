"""The head of a latent consistency model around a policy: what RLCM trains, with the `Consistency` noise rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from drover.common.diffusion.noising import over
from drover.common.diffusion.prediction import consistency_x0
from drover.common.errors import ConfigError
from drover.common.protocols import Conditioning, Policy, Prediction, Schedule


class ConsistencyHead:
    """``ConsistencyHead(StableDiffusion.load("SimianLuo/LCM_Dreamshaper_v7", embedded_scale=8.0))``."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.schedule: Schedule = policy.schedule
        self.latent_shape = policy.latent_shape

    @property
    def trainable(self) -> nn.Module:
        return self.policy.trainable

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return self.policy.encode(prompts)

    def predict(self, x: Tensor, time: Tensor, cond: Conditioning) -> Prediction:
        """x0 of the head, and the noise that belongs to it: x = a x0 + s noise still holds."""
        x0 = consistency_x0(x, self.policy.predict(x, time, cond).x0, time)
        a, s = (over(coefficient, x) for coefficient in self.schedule.coefficients(time))
        return Prediction(x0=x0, noise=(x - a * x0) / s)

    def decode(self, x0: Tensor) -> np.ndarray:
        return self.policy.decode(x0)

    def to_latents(self, media: np.ndarray) -> Tensor:
        return self.policy.to_latents(media)

    parts, empty = 1, ""

    def output(self, x: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        return self.policy.output(x, time, cond)

    def target(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        raise ConfigError("x")
