"""Laws of the times at which clean latents are noised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from drover.common.protocols import Schedule


class TimeLaw(Protocol):
    def draw(self, schedule: Schedule, draws: Sequence[torch.Generator]) -> Tensor:
        """[B] times."""


@dataclass(frozen=True, slots=True)
class Uniform:
    """All times alike."""

    def draw(self, schedule: Schedule, draws: Sequence[torch.Generator]) -> Tensor:
        return torch.stack([torch.randint(schedule.num_times, (), generator=g) for g in draws])
