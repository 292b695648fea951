"""The inputs and outputs of objectives: measured groups become credit, and batches for the loss follow from the credit.

Axes: N samples of a group, E examples of an iteration, A samples of an example (1, or 2 that are compared), S parts of a
sample, B examples of a micro-batch, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from drover.common.protocols import Conditioning
from drover.common.types import RolloutGroup

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Measured:
    """One reward's answer for one group, as arrays."""

    values: np.ndarray  # [N] float64, meaningful where valid
    valid: np.ndarray  # [N] bool
    scoring_s: float = 0.0  # seconds of one reward server
    uncertainty: np.ndarray | None = None  # [N] float64, in the unit of the values
    parts: np.ndarray | None = None  # [N, S] float32, a judgement per part
    features: np.ndarray | None = None  # [N, D] float32


@dataclass(frozen=True, slots=True)
class MeasuredGroup:
    """A sampled group with the answers of all rewards that it names, by reward name."""

    rollout: RolloutGroup
    rewards: Mapping[str, Measured]


@dataclass(frozen=True, slots=True)
class Credit:
    """The terms of one iteration's loss: the samples that teach, their weights, and the count that divides the sum.

    Example (policy gradient): rows [[[0, 0]], [[0, 3]]], weights [[1.2], [-1.2]], terms 8: two of eight samples teach.
    Example (preference pairs): rows [[[0, 3], [0, 0]]], weights [[1.0]], terms 1: sample 3 of group 0 is preferred to sample 0.
    """

    rows: np.ndarray  # [E, A, 2] int32: (group of the iteration, sample); of a pair the preferred sample first
    weights: np.ndarray  # [E, S] float64, signed; an example whose weights are all 0 is counted and not computed
    terms: float  # examples that the mean is over, those of weight 0 among them

    def __post_init__(self) -> None:
        shape = self.rows.shape
        if len(shape) != 3 or shape[1] not in (1, 2) or shape[2] != 2 or self.weights.shape[:1] != shape[:1]:
            raise ValueError(
                f"credit needs rows [E, 1 or 2, 2] and weights [E, S], got {list(shape)} and {list(self.weights.shape)}"
            )

    @classmethod
    def per_sample(cls, weights: Sequence[np.ndarray], counted: Sequence[np.ndarray]) -> Credit:
        """A signed weight for every sample of each group, [N] or [N, S]; the mean is over the ``counted`` [N] ones."""
        rows = [(group, row) for group, column in enumerate(weights) for row in range(len(column))]
        wide = [column.reshape(len(column), -1) for column in weights]
        return cls(
            np.array(rows, np.int32).reshape(-1, 1, 2),
            np.concatenate(wide) if wide else np.zeros((0, 1)),
            float(sum(int(known.sum()) for known in counted)),
        )

    @classmethod
    def pairs(
        cls, pairs: Sequence[tuple[tuple[int, int], tuple[int, int]]], weights: np.ndarray | None = None
    ) -> Credit:
        """A term for each (preferred, other), both as (group, sample); ``weights`` [E, S], by default 1."""
        rows = np.array(pairs, np.int32).reshape(-1, 2, 2)
        return cls(rows, np.ones((len(rows), 1)) if weights is None else weights, float(len(rows)))

    @property
    def teaching(self) -> np.ndarray:
        """[T] indices of the examples with a weight that is not 0, rising."""
        return np.flatnonzero(self.weights.any(axis=1))

    def teaches(self, num_groups: int) -> np.ndarray:
        """[num_groups] bool: whether any sample of the group is in an example that teaches."""
        taught = np.zeros(num_groups, bool)
        taught[np.unique(self.rows[self.teaching, :, 0])] = True
        return taught


@dataclass(frozen=True, slots=True)
class StepBatch:
    """Recorded denoising steps. Of pairs, all preferred rows come first, then the others in the same order."""

    x: Tensor  # [A B, *latent] float32, the state before the step
    x_next: Tensor  # [A B, *latent] float32, the state after it
    time: Tensor  # [A B]
    next_time: Tensor  # [A B]
    log_prob: Tensor  # [A B, S] float32, under the weights that sampled
    weight: Tensor  # [B, S] float32
    cond: Conditioning  # [A B, ...]


@dataclass(frozen=True, slots=True)
class LatentBatch:
    """Clean latents, whose noise and times the objective draws. Of pairs, all preferred rows come first."""

    x0: Tensor  # [A B, *latent] float32
    weight: Tensor  # [B, S] float32
    cond: Conditioning  # [A B, ...]
    draws: Sequence[torch.Generator]  # [A B], the same for an example on any rank and in any micro-batch
    known: Mapping[str, float] = field(default_factory=dict)  # sums over the optimiser step; see `Surveys`
