"""Rules for the times that a sampler visits, from noise to clean.

A schedule knows the spacing of its checkpoint, which kernels use unless they name another one.
Leading, trailing, linspace: Lin et al. 2024, arXiv 2305.08891, table 2, as diffusers' schedulers round them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from drover.common.errors import ConfigError
from drover.common.protocols import Schedule

END = -1  # the end of a discrete path, as its schedule defines it


class Spacing(Protocol):
    """A rule for the times of a chain."""

    def times(self, schedule: Schedule, num_steps: int) -> tuple[int, ...]:
        """[num_steps + 1] times, the last of which is the end of the path. The schedule checks that they lie on it."""


@dataclass(frozen=True, slots=True)
class Leading:
    """Multiples of T // num_steps plus an offset, then the end: 981, 961, ..., 1, -1 for 50 steps of 1000.

    The grid of Stable Diffusion's DDIM ("leading", steps_offset 1).
    """

    offset: int = 1

    def times(self, schedule: Schedule, num_steps: int) -> tuple[int, ...]:
        stride = schedule.num_times // num_steps
        return (*(step * stride + self.offset for step in reversed(range(num_steps))), END)


@dataclass(frozen=True, slots=True)
class Trailing:
    """Backwards from the last time in steps of T / num_steps, then the end: 999, 749, 499, 249, -1 for 4 steps of 1000."""

    def times(self, schedule: Schedule, num_steps: int) -> tuple[int, ...]:
        num_times = schedule.num_times
        # Rounded as diffusers does, halves to even numbers, so that both visit the same times.
        return (*_whole(np.arange(num_times, 0, -num_times / num_steps)[:num_steps], -1), END)


@dataclass(frozen=True, slots=True)
class Linspace:
    """Evenly from the last time to the first, both included, then the end: 999, 666, 333, 0, -1 for 4 steps of 1000."""

    def times(self, schedule: Schedule, num_steps: int) -> tuple[int, ...]:
        return (*_whole(np.linspace(0, schedule.num_times - 1, num_steps)[::-1]), END)


@dataclass(frozen=True, slots=True)
class Distilled:
    """Every k-th of the times on which a latent consistency model was distilled: 999, 759, 519, 279, -1 for 4 steps.

    The grid that RLCM trains on (arXiv 2404.03673).
    """

    origin_steps: int = 50

    def times(self, schedule: Schedule, num_steps: int) -> tuple[int, ...]:
        known = _distilled_times(schedule, self.origin_steps, num_steps)
        skip = self.origin_steps // num_steps
        return (*(known[step * skip] for step in range(num_steps)), END)


@dataclass(frozen=True, slots=True)
class DistilledEvenly:
    """Even shares of the times on which a latent consistency model was distilled: 999, 759, 499, 259, -1 for 4 steps.

    The grid of diffusers' LCMScheduler, which reaches closer to clean than `Distilled` where k is no whole number.
    """

    origin_steps: int = 50

    def times(self, schedule: Schedule, num_steps: int) -> tuple[int, ...]:
        known = _distilled_times(schedule, self.origin_steps, num_steps)
        return (*(known[step * self.origin_steps // num_steps] for step in range(num_steps)), END)


@dataclass(frozen=True, slots=True)
class Linear:
    """Evenly from pure noise to clean along a flow, bent towards noise by ``shift`` > 1.

    t = shift u / (1 + (shift - 1) u) of even u (SD3, arXiv 2403.03206, eq. 23).
    Rounded to whole times, at which the model is then evaluated: the rounding moves the grid and adds no error.
    """

    shift: float = 1.0

    def times(self, schedule: Schedule, num_steps: int) -> tuple[int, ...]:
        even = [1 - step / num_steps for step in range(num_steps + 1)]
        levels = [self.shift * u / (1 + (self.shift - 1) * u) for u in even]
        return tuple(round(schedule.num_times * level) for level in levels)


def spaced(schedule: Schedule, spacing: Spacing, num_steps: int, *, first: int, end: int) -> tuple[int, ...]:
    """The times of a spacing. Raises `ConfigError` unless they fall strictly within ``first`` .. ``end`` of a path."""
    times = spacing.times(schedule, num_steps)
    if times[0] > first or times[-1] != end or any(then >= now for now, then in pairwise(times)):
        raise ConfigError(
            f"{num_steps} steps of {spacing} would visit {times[0]} to {times[-1]}, not falling times of a path from "
            f"{first} to {end}; take fewer steps or another spacing"
        )
    return times


def _whole(times: np.ndarray, moved: int = 0) -> list[int]:
    return [int(time) + moved for time in times.round()]


def _distilled_times(schedule: Schedule, origin_steps: int, num_steps: int) -> Sequence[int]:
    """[origin_steps] falling times on which the model was distilled."""
    if num_steps > origin_steps:
        raise ConfigError(f"{num_steps} steps, but the model knows {origin_steps} times; take fewer steps")
    stride = schedule.num_times // origin_steps
    return [step * stride - 1 for step in range(origin_steps, 0, -1)]
