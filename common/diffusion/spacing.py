"""Which times a sampler visits, from noise to clean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from drover.common.diffusion.noising import DiscreteSchedule, FlowSchedule
from drover.common.errors import ConfigError
from drover.common.protocols import Schedule

END = -1  # the end of a discrete path, as its schedule defines it


class Spacing(Protocol):
    def times(self, schedule: Schedule, num_steps: int) -> tuple[int, ...]:
        """[num_steps + 1] strictly falling times; the last is the end of the path."""


@dataclass(frozen=True, slots=True)
class Leading:
    """Multiples of T // num_steps plus an offset, then the end: 981, 961, ..., 1, -1 for 50 steps of 1000.

    The grid of Stable Diffusion's DDIM ("leading", steps_offset 1).
    """

    offset: int = 1

    def times(self, schedule: Schedule, num_steps: int) -> tuple[int, ...]:
        num_times = _discrete(schedule, self).num_times
        stride = num_times // num_steps
        if stride < 1 or (num_steps - 1) * stride + self.offset >= num_times:
            raise ConfigError(f"{num_steps} steps with offset {self.offset} do not fit {num_times} times; take fewer")
        return (*(step * stride + self.offset for step in reversed(range(num_steps))), END)


@dataclass(frozen=True, slots=True)
class Distilled:
    """Every k-th of the times a latent consistency model was distilled on: 999, 759, 519, 279, -1 for 4 steps."""

    origin_steps: int = 50

    def times(self, schedule: Schedule, num_steps: int) -> tuple[int, ...]:
        stride = _discrete(schedule, self).num_times // self.origin_steps
        if num_steps > self.origin_steps:
            raise ConfigError(f"{num_steps} steps, but the model knows {self.origin_steps} times; take fewer steps")
        skip = self.origin_steps // num_steps
        return (*((self.origin_steps - step * skip) * stride - 1 for step in range(num_steps)), END)


@dataclass(frozen=True, slots=True)
class Linear:
    """Evenly from pure noise to clean along a flow, bent towards noise by ``shift`` > 1.

    t = shift u / (1 + (shift - 1) u) of even u (SD3, arXiv 2403.03206, eq. 23).
    Rounded to whole times, at which the model is then evaluated: the rounding moves the grid and adds no error.
    """

    shift: float = 1.0

    def times(self, schedule: Schedule, num_steps: int) -> tuple[int, ...]:
        if not isinstance(schedule, FlowSchedule):
            raise ConfigError(f"{self} spaces a FlowSchedule, got {type(schedule).__name__}; use Leading()")
        even = [1 - step / num_steps for step in range(num_steps + 1)]
        levels = [self.shift * u / (1 + (self.shift - 1) * u) for u in even]
        times = tuple(round(schedule.num_times * level) for level in levels)
        if len(set(times)) != len(times):
            raise ConfigError(f"{num_steps} steps with shift {self.shift} fall on equal times; take fewer steps")
        return times


def _discrete(schedule: Schedule, spacing: Spacing) -> DiscreteSchedule:
    if not isinstance(schedule, DiscreteSchedule):
        raise ConfigError(f"{spacing} spaces a DiscreteSchedule, got {type(schedule).__name__}; use Linear()")
    return schedule
