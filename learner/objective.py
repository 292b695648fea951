"""The seam between a method and the loop: an objective turns measurements into credit, and batches into a loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from drover.common.protocols import Kernel, Policy
from drover.learner.examples import Credit, LatentBatch, MeasuredGroup, StepBatch

if TYPE_CHECKING:
    from torch import Tensor

BatchKind = type[StepBatch] | type[LatentBatch]


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A sum over the micro-batch, and sums of watched numbers; all are divided by the global count later."""

    total: Tensor  # scalar
    watched: Mapping[str, Tensor] = field(default_factory=dict)  # name -> scalar, detached; the declared names


@dataclass(frozen=True, slots=True)
class Models:
    """The networks that a loss may call."""

    policy: Policy
    kernel: Kernel  # of the training sampler
    reference: Policy | None = None  # without gradient; given where `Needs.reference` asks for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """The conditions under which an objective can learn; a recipe that breaks one is refused when it is built."""

    rewards: tuple[str, ...] = ()  # names that `credit` reads of every group
    by_task: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # instead, where tasks differ: names by task
    siblings: int = 1  # samples of a prompt, at least
    draws: int = 1  # times that a clean latent is noised in one optimiser step
    reference: bool = False
    one_version: bool = False  # all samples of an iteration from the same weights: max_lag must be 0

    def of_task(self, task: str) -> tuple[str, ...]:
        """Rewards that are read of that task's groups. Raises KeyError where tasks differ and this one is unknown."""
        return self.by_task[task] if self.by_task else self.rewards


class Objective(Protocol):
    """A method of learning: it makes credit of measurements and a loss of batches. Frozen; holds no models."""

    @property
    def learns_from(self) -> BatchKind:
        """The kind of batch. For a `StepBatch`, actors record denoising steps; for a `LatentBatch`, clean latents."""

    @property
    def watched(self) -> tuple[str, ...]:
        """The names of `LossOutput.watched`: declared, so that all ranks sum the same list."""

    @property
    def needs(self) -> Needs: ...

    def credit(self, groups: Sequence[MeasuredGroup]) -> Credit:
        """The terms of an iteration's loss. Pure, on the CPU."""

    def loss(self, models: Models, batch: Any) -> LossOutput:
        """The loss, summed over a batch of the declared kind. Rows of weight 0 add neither value nor gradient."""


@runtime_checkable
class Surveys(Protocol):
    """An objective whose loss needs sums over the whole optimiser step first, such as KTO's baseline."""

    def survey(self, models: Models, batch: Any) -> Mapping[str, Tensor]:
        """Sums over a batch, name -> scalar, without gradient. Their sums over all ranks are in `LatentBatch.known`."""
