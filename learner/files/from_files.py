"""Learn from examples in files, beside samples or instead of them: pretraining, behaviour cloning, offline preferences.

Source of the mix with rewards: arXiv 2401.12244, eq. 8 and algorithm 1: an optimiser step on files after every round of
tasks. One AdamW state serves both, so the magnitudes of the two gradients decide how much the files weigh; the ratio is logged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from drover.common import seeds
from drover.common.errors import ConfigError
from drover.common.protocols import Files
from drover.learner.examples import LatentBatch
from drover.learner.objective import Models, Objective

if TYPE_CHECKING:
    from drover.learner.step import Part

When = Literal["round", "step", "alone"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FromFiles:
    """The settings of learning from files: a source, an objective, and the time at which it gets its optimiser steps.

    ``weight`` multiplies the loss. ``when`` "round": one optimiser step on files at the end of every round of tasks. "step":
    a part of every optimiser step, as eq. 8 prints it. "alone": every step is on files, and no actor samples for training.
    """

    source: Files
    objective: Objective
    batch_size: int  # examples of one step, over all ranks
    weight: float = 1.0
    when: When = "round"

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not self.weight > 0:
            raise ConfigError(
                f"files need a batch and a positive weight, got {self.batch_size} and {self.weight}; "
                "leave files out to do without"
            )
        if self.when not in get_args(When):
            raise ConfigError(f"when must be one of {', '.join(get_args(When))}, got {self.when!r}")
        if self.objective.learns_from is not LatentBatch:
            raise ConfigError(
                f"{type(self.objective).__name__} learns from recorded steps, which files do not have; "
                "use an objective that learns from clean latents, such as Denoising()"
            )


class FileExamples:
    """One rank's part of the examples from files."""

    def __init__(self, spec: FromFiles, models: Models, *, seed: int, rank: int, ranks: int) -> None:
        if spec.batch_size % ranks:
            raise ConfigError(f"a batch of {spec.batch_size} from files does not divide over {ranks} ranks")
        self.spec = spec
        self._source = spec.source.open(seed)
        self._models, self._seed, self._rank, self._ranks = models, seed, rank, ranks

    def part(self, step: int) -> Part:
        """Batch number ``step`` as a part of an optimiser step's loss. The sum over all ranks equals one rank's alone."""
        from drover.learner.batches import Batches
        from drover.learner.step import Part

        batches = Batches(lambda: self._batches(step), 1)
        return Part(self.spec.objective, batches, float(self.spec.batch_size), self.spec.weight)

    def _batches(self, step: int) -> Iterator[tuple[LatentBatch, bool]]:
        import torch

        size = self.spec.batch_size // self._ranks
        found = self._source.batch(step * self._ranks + self._rank, size)
        policy, first = self._models.policy, self._rank * size
        x0 = policy.to_latents(found.media)
        sides = len(found.names) // size
        draws = [
            generator
            for side in range(sides)
            for generator in seeds.generators(
                self._seed, "pretraining" if side == 0 else "pretraining.other", step, range(first, first + size)
            )
        ]
        weight = torch.from_numpy(np.ones((size, 1)) if found.weight is None else found.weight).float().to(x0.device)
        yield LatentBatch(x0=x0, weight=weight, cond=policy.encode(found.names), draws=draws), True
