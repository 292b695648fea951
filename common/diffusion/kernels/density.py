"""Find the steps of a kernel that have a density, and so can be trained."""

from __future__ import annotations

from collections.abc import Sequence

from drover.common.errors import ConfigError
from drover.common.protocols import Kernel, Prediction, Schedule


def steps_with_density(kernel: Kernel, schedule: Schedule) -> tuple[int, ...]:
    """Indices of the steps whose std is above 0. A step that ends at clean latents often has none."""
    import torch

    times = torch.tensor(kernel.times(schedule))
    probe = torch.zeros(len(times) - 1, 1)
    std = kernel.step(schedule, probe, times[:-1], times[1:], Prediction(x0=probe, noise=probe)).std
    return tuple(int(step) for step in torch.nonzero(std.flatten() > 0).flatten())


def require_density(kernel: Kernel, schedule: Schedule, steps: Sequence[int]) -> None:
    """Raise `ConfigError` when one of ``steps`` cannot be trained because it has no density."""
    if steps and not kernel.stochastic:
        raise ConfigError(f"{kernel} is deterministic: its steps have no density to train; set eta above 0")
    possible = steps_with_density(kernel, schedule)
    impossible = sorted(set(steps) - set(possible))
    if impossible:
        raise ConfigError(f"steps {impossible} of {kernel} have no density; record among {list(possible)}")
