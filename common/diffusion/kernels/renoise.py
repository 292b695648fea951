"""Predict the clean latent and noise it again to the next level: one formula, three rules for the share of fresh noise.

    x' ~ N(a' x0 + sqrt(s'^2 - r^2) noise, r^2)

DDIM: Song et al. 2021, arXiv 2010.02502, eq. 12 and 16. Coefficient-preserving: Flow-CPS, arXiv 2509.05952.
Consistency: the step of latent consistency models that RLCM trains, arXiv 2404.03673.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import pi, sin
from typing import TYPE_CHECKING, Protocol

from drover.common.diffusion.gaussian import Gaussian
from drover.common.diffusion.noising import over
from drover.common.diffusion.spacing import Spacing
from drover.common.errors import ConfigError
from drover.common.protocols import Prediction, Schedule

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Level:
    """The path's coefficients [B], float64, at one time."""

    a: Tensor
    s: Tensor


class NoiseRule(Protocol):
    """A rule for the amount of fresh noise at the next time."""

    @property
    def stochastic(self) -> bool: ...

    def fresh(self, now: Level, then: Level) -> Tensor:
        """r [B] between 0 and ``then.s``."""


@dataclass(frozen=True, slots=True)
class Ddim:
    """DDIM's rule: eta 1 is the ancestral sampler, which step-wise methods train; eta 0 is deterministic, without density."""

    eta: float = 1.0

    def __post_init__(self) -> None:
        _check_eta(self.eta)

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def fresh(self, now: Level, then: Level) -> Tensor:
        variance = (then.s / now.s).square() * (1 - (now.a / then.a).square())
        return self.eta * variance.clamp(min=0).sqrt()


@dataclass(frozen=True, slots=True)
class CoefficientPreserving:
    """Flow-CPS's rule: a share sin(eta pi/2) of the noise is fresh, so x' has its time's noise level, unlike Euler-Maruyama."""

    eta: float = 0.5

    def __post_init__(self) -> None:
        _check_eta(self.eta)

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def fresh(self, now: Level, then: Level) -> Tensor:
        return then.s * sin(self.eta * pi / 2)


@dataclass(frozen=True, slots=True)
class Consistency:
    """The rule of consistency models: all noise is fresh, and the prediction is the x0 of a consistency head."""

    stochastic: bool = field(default=True, init=False)

    def fresh(self, now: Level, then: Level) -> Tensor:
        return then.s


@dataclass(frozen=True, slots=True)
class Renoise:
    """The kernel that predicts x0 and noises it again; a rule gives the amount of fresh noise.

    Example: ``Renoise(50, Ddim(eta=1.0))`` visits 981, 961, ..., 1 and the end on Stable Diffusion's schedule. ``spacing``
    None uses the schedule's own, which is that of its checkpoint.
    """

    num_steps: int
    rule: NoiseRule
    spacing: Spacing | None = None

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ConfigError(f"num_steps must be at least 1, got {self.num_steps}")

    @property
    def stochastic(self) -> bool:
        return self.rule.stochastic

    def times(self, schedule: Schedule) -> tuple[int, ...]:
        return schedule.times(self.num_steps, self.spacing)

    def step(self, schedule: Schedule, x: Tensor, time: Tensor, next_time: Tensor, prediction: Prediction) -> Gaussian:
        now, then = Level(*schedule.coefficients(time)), Level(*schedule.coefficients(next_time))
        fresh = self.rule.fresh(now, then)
        kept = (then.s.square() - fresh.square()).clamp(min=0).sqrt()
        mean = over(then.a, x) * prediction.x0 + over(kept, x) * prediction.noise
        return Gaussian(mean, over(fresh, x))


def _check_eta(eta: float) -> None:
    if not 0 <= eta <= 1:
        raise ConfigError(f"eta must lie in [0, 1], got {eta}; 1 is fully stochastic, 0 deterministic")
