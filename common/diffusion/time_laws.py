"""Distributions of random times on the noising path, for losses that draw times. Axes: B batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from drover.common.errors import ConfigError
from drover.common.protocols import Schedule

if TYPE_CHECKING:
    from torch import Generator, Tensor


class TimeLaw(Protocol):
    """A distribution over the times 0 .. num_times - 1 of a schedule."""

    def draw(self, schedule: Schedule, draws: Sequence[Generator]) -> Tensor:
        """[B] int64 times on the generators' device. Row i is drawn from ``draws[i]`` alone, with one call."""


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every time is equally likely, as in the pretraining of most diffusion models."""

    def draw(self, schedule: Schedule, draws: Sequence[Generator]) -> Tensor:
        import torch

        return torch.stack([torch.randint(schedule.num_times, (), generator=g, device=g.device) for g in draws])


@dataclass(frozen=True, slots=True)
class LogitNormal:
    """The times are u x num_times, rounded down, with logit(u) ~ N(mean, std^2). A ``mean`` above 0 prefers noisy times.

    Source: SD3, arXiv 2403.03206, section 3.1.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.mean) or not 0 < self.std < math.inf:
            raise ConfigError(f"LogitNormal needs a finite mean and a positive std, got {self.mean} and {self.std}")

    def draw(self, schedule: Schedule, draws: Sequence[Generator]) -> Tensor:
        import torch

        normal = torch.stack([torch.randn((), generator=g, device=g.device) for g in draws])
        share = torch.sigmoid(self.mean + self.std * normal)
        # In float32 the sigmoid of a large number is 1, which would be a time past the last.
        return (share * schedule.num_times).long().clamp(max=schedule.num_times - 1)


@dataclass(frozen=True, slots=True, init=False)
class OneOf:
    """Each of a few times is equally likely, for example ``OneOf(249, 499, 749)``."""

    times: tuple[int, ...]

    def __init__(self, *times: int) -> None:
        if not times or min(times) < 0:
            raise ConfigError(f"OneOf needs at least one time, and none below 0; got {times}")
        object.__setattr__(self, "times", times)

    def draw(self, schedule: Schedule, draws: Sequence[Generator]) -> Tensor:
        import torch

        if max(self.times) >= schedule.num_times:
            raise ConfigError(f"{self} names a time past {schedule.num_times - 1}, the last of the model; lower it")
        chosen = [torch.randint(len(self.times), (), generator=g, device=g.device) for g in draws]
        return torch.stack([torch.tensor(self.times, device=index.device)[index] for index in chosen])
