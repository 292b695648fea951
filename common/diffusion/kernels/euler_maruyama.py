"""Take Euler-Maruyama steps of the flow SDE: one formula, two rules for the amount of injected noise.

    x' ~ N(x + (v - g^2 / 2 score) dt, g^2 |dt|),    v = noise - x0,    score = -noise / s,    dt = t' - t < 0

Every g has the same marginals in the limit of small steps. Flow-GRPO: arXiv 2505.05470, eq. 9; DanceGRPO, with
constant g: arXiv 2505.07818.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from drover.common.diffusion.gaussian import Gaussian
from drover.common.diffusion.noising import over
from drover.common.diffusion.spacing import Spacing
from drover.common.errors import ConfigError
from drover.common.protocols import Prediction, Schedule

if TYPE_CHECKING:
    from torch import Tensor


class DiffusionRule(Protocol):
    """A rule for the amount of noise that a step injects."""

    @property
    def stochastic(self) -> bool: ...

    def diffusion(self, level: Tensor, next_level: Tensor) -> Tensor:
        """g [B] >= 0 at noise level t = ``level`` [B] in (0, 1]."""


@dataclass(frozen=True, slots=True)
class FlowGrpo:
    """Flow-GRPO's rule: g = eta sqrt(t / (1 - t)). At t = 1, where that is infinite, 1 - t takes its value at the next time."""

    eta: float = 0.7

    def __post_init__(self) -> None:
        _check_not_negative("eta", self.eta)

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def diffusion(self, level: Tensor, next_level: Tensor) -> Tensor:
        import torch

        remaining = 1 - torch.where(level < 1, level, next_level)
        return self.eta * (level / remaining).sqrt()


@dataclass(frozen=True, slots=True)
class ConstantNoise:
    """The rule of constant noise: g = sigma at every time."""

    sigma: float = 0.3

    def __post_init__(self) -> None:
        _check_not_negative("sigma", self.sigma)

    @property
    def stochastic(self) -> bool:
        return self.sigma > 0

    def diffusion(self, level: Tensor, next_level: Tensor) -> Tensor:
        import torch

        return torch.full_like(level, self.sigma)


@dataclass(frozen=True, slots=True)
class EulerMaruyama:
    """A stochastic kernel for flows: every step has a density, the last as well.

    Example: ``EulerMaruyama(10, FlowGrpo(eta=0.7), Linear(shift=3.0))``. A step divides by s at its first time, which is
    never 0 because times fall. ``spacing`` None uses the schedule's own.
    """

    num_steps: int
    rule: DiffusionRule
    spacing: Spacing | None = None

    def __post_init__(self) -> None:
        if self.num_steps < 2:
            raise ConfigError(f"num_steps must be at least 2, got {self.num_steps}: g is infinite from noise to clean")

    @property
    def stochastic(self) -> bool:
        return self.rule.stochastic

    def times(self, schedule: Schedule) -> tuple[int, ...]:
        return schedule.times(self.num_steps, self.spacing)

    def step(self, schedule: Schedule, x: Tensor, time: Tensor, next_time: Tensor, prediction: Prediction) -> Gaussian:
        (_, level), (_, next_level) = schedule.coefficients(time), schedule.coefficients(next_time)
        elapsed = level - next_level
        injected = self.rule.diffusion(level, next_level)
        # -(v + g^2 noise / 2 s) elapsed; the two factors of noise are combined in float64.
        on_noise = elapsed * (1 + injected.square() / (2 * level))
        mean = x - over(on_noise, x) * prediction.noise + over(elapsed, x) * prediction.x0
        return Gaussian(mean, over(injected * elapsed.sqrt(), x))


def _check_not_negative(name: str, value: float) -> None:
    if value < 0:
        raise ConfigError(f"{name} must not be negative, got {value}")
