"""The seam between a method and the loop: judge measurements, then turn recorded steps into a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from drover.common.protocols import Kernel, Policy
from drover.learner.examples import Credit, MeasuredGroup, StepBatch


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A sum over the micro-batch, and sums of what is worth watching; all are divided by the global count later."""

    total: Tensor  # scalar
    watched: Mapping[str, Tensor]  # name -> scalar, detached


class Objective(Protocol):
    """One method. Frozen and cheap; the models come as arguments."""

    @property
    def rewards(self) -> tuple[str, ...]:
        """Names of the rewards it looks at."""

    @property
    def needs_groups(self) -> bool:
        """Whether it compares samples of one prompt, of which there must be at least two then."""

    def credit(self, groups: Sequence[MeasuredGroup]) -> list[Credit]:
        """One `Credit` per group of an iteration, in order. Pure, on the CPU."""

    def loss(self, policy: Policy, kernel: Kernel, batch: StepBatch) -> LossOutput: ...
