"""Keep the model close to real pictures: steps on the loss that it was pretrained with, between those on rewards.

Source: arXiv 2401.12244, eq. 8 and algorithm 1: one optimiser step of its own after every round of tasks. Because one
AdamW state serves both, its effective weight is set by the gradients' magnitudes, so their ratio is logged.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from drover.common import seeds
from drover.common.diffusion.error import per_part, squared_error
from drover.common.diffusion.time_laws import Uniform
from drover.common.errors import ConfigError
from drover.common.protocols import Policy
from drover.learner.files.pairs import Pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretraining:
    """``weight`` multiplies the loss. ``combined`` adds it to every step on rewards, instead of a step of its own a round.

    The paper's eq. 8 prints a combined loss with a weight it never gives, its algorithm 1 a separate step.
    """

    pairs: Pairs
    batch_size: int
    weight: float = 1.0
    combined: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not self.weight > 0:
            raise ConfigError(
                f"pretraining needs a batch and a positive weight, got {self.batch_size} and {self.weight}; "
                "leave pretraining out to do without"
            )


class PretrainingLoss:
    """One rank's part of it."""

    def __init__(self, spec: Pretraining, policy: Policy, *, seed: int, rank: int, ranks: int) -> None:
        if spec.batch_size % ranks:
            raise ConfigError(f"a pretraining batch of {spec.batch_size} does not divide over {ranks} ranks")
        self._source = spec.pairs.open(seed)
        self._spec, self._policy, self._seed, self._rank, self._ranks = spec, policy, seed, rank, ranks

    def __call__(self, step: int) -> Tensor:
        """Scalar: this rank's share of the weighted mean over the batch. Ranks add up to what one rank computes alone."""
        size = self._spec.batch_size // self._ranks
        media, captions = self._source.batch(step * self._ranks + self._rank, size)
        first = self._rank * size
        drawn = seeds.generators(self._seed, "pretraining", step, range(first, first + size))
        x0 = self._policy.to_latents(media)
        time = Uniform().draw(self._policy.schedule, drawn).to(x0.device)
        noise = seeds.normal(self._policy.latent_shape, drawn).to(x0.device)
        error = squared_error(self._policy, x0, noise, time, self._policy.encode(captions))
        return self._spec.weight * per_part(error).sum() / self._spec.batch_size
