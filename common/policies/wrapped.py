"""A policy around another policy: the base of guidance and of the consistency head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from drover.common.media.media import Media
from drover.common.protocols import Conditioning, Policy, Prediction, Schedule

if TYPE_CHECKING:
    from torch import Tensor, nn


class Wrapped:
    """A policy that forwards every call to the wrapped ``policy``. A subclass overrides the methods that it changes."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.schedule: Schedule = policy.schedule

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return self.policy.latent_shape

    @property
    def parts(self) -> int:
        return self.policy.parts

    @property
    def trainable(self) -> nn.Module:
        return self.policy.trainable

    @property
    def empty(self) -> str | None:
        return self.policy.empty

    def encode(self, names: Sequence[str]) -> Conditioning:
        return self.policy.encode(names)

    def predict(self, x: Tensor, time: Tensor, cond: Conditioning) -> Prediction:
        return self.policy.predict(x, time, cond)

    def output(self, x: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        return self.policy.output(x, time, cond)

    def target(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return self.policy.target(x0, noise, time)

    def decode(self, x0: Tensor, cond: Conditioning) -> Media:
        return self.policy.decode(x0, cond)

    def to_latents(self, media: Media) -> Tensor:
        return self.policy.to_latents(media)
