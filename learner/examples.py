"""What objectives are given and what they make of it.

Axes: N samples of a group, K recorded steps, B examples of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from drover.common.protocols import Conditioning
from drover.common.types import Measurement, RolloutGroup


@dataclass(frozen=True, slots=True)
class MeasuredGroup:
    """A sampled group with every measurement its recipe asks for, by reward name."""

    rollout: RolloutGroup
    measurements: Mapping[str, Measurement]

    def values(self, reward: str) -> np.ndarray:
        """[N] float64; meaningful where `valid`."""
        return np.asarray(self.measurements[reward].values, dtype=np.float64)

    def valid(self, reward: str) -> np.ndarray:
        """[N] bool."""
        return np.asarray(self.measurements[reward].valid, dtype=bool)


@dataclass(frozen=True, slots=True)
class Credit:
    """What an objective makes of one group: a signed weight per sample; ``counted`` says which samples the mean is over."""

    weights: np.ndarray  # [N] float64, 0 where nothing is to be learned
    counted: np.ndarray  # [N] bool

    @property
    def empty(self) -> bool:
        """Whether no sample of the group has anything to teach."""
        return not self.weights.any()


@dataclass(frozen=True, slots=True)
class StepBatch:
    """Recorded denoising steps, ready for a loss."""

    x: Tensor  # [B, *latent] float32, the state before the step
    x_next: Tensor  # [B, *latent] float32, the state after it
    time: Tensor  # [B]
    next_time: Tensor  # [B]
    log_prob: Tensor  # [B] float32, under the weights that sampled
    weight: Tensor  # [B] float32
    cond: Conditioning
