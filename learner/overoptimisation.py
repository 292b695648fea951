"""Notice when a learned reward goes on rising while the truth that it stands for falls (Goodhart's law; arXiv 2210.10760)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from drover.common.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Compares two held-out rewards at every evaluation: a learned one (``proxy``) and the ``truth`` it stands for.

    An evaluation counts against the run if the truth lies more than ``margin`` standard errors below its best while the proxy
    is above its own mean at that best. ``stop`` ends the run at the ``patience``-th such evaluation in a row.
    """

    truth: str
    proxy: str
    stop: bool = False
    patience: int = 2
    margin: float = 2.0

    def __post_init__(self) -> None:
        if self.patience < 1 or self.margin < 0 or self.truth == self.proxy:
            raise ConfigError(
                f"a watch compares two rewards, with patience of at least 1 and a margin not below 0; got {self}"
            )


@dataclass(frozen=True, slots=True)
class Estimate:
    """The mean and spread of one reward over the samples of one evaluation."""

    mean: float
    std: float
    count: float

    @property
    def error(self) -> float:
        """Standard error of the mean, as if samples were independent."""
        return self.std / math.sqrt(self.count)

    def above(self, first: Estimate) -> float:
        """Rise of the mean since ``first``, in standard deviations of its samples; NaN where those were all alike."""
        return (self.mean - first.mean) / first.std if first.std else math.nan


@dataclass(slots=True)
class Verdict:
    """The state of a watch: (truth, proxy) at the first evaluation, and at the one where the truth was highest."""

    first: tuple[Estimate, Estimate] | None = None
    best: tuple[Estimate, Estimate] | None = None
    strikes: int = 0

    def hear(self, watch: Watch, scalars: Mapping[str, float]) -> dict[str, float]:
        """Add one evaluation. Returns the numbers to report; none where one of the two rewards was not measured.

        ``truth`` and ``proxy`` are the rise of each since the first evaluation (`Estimate.above`), ``gap`` is proxy less
        truth; they are left out where all samples of the first evaluation were alike, which leaves them without a unit.
        """
        truth, proxy = (_estimate(scalars, name) for name in (watch.truth, watch.proxy))
        if truth is None or proxy is None:
            return {}
        self.first = self.first or (truth, proxy)
        if self.best is None or truth.mean > self.best[0].mean:
            self.best = truth, proxy
        fell = self.best[0].mean - truth.mean > watch.margin * math.hypot(truth.error, self.best[0].error)
        self.strikes = self.strikes + 1 if fell and proxy.mean > self.best[1].mean else 0
        rises = truth.above(self.first[0]), proxy.above(self.first[1])
        found = {"truth": rises[0], "proxy": rises[1], "gap": rises[1] - rises[0], "strikes": float(self.strikes)}
        return {f"overoptimisation/{name}": value for name, value in found.items() if math.isfinite(value)}

    def saved(self) -> dict[str, Any]:
        """The state as JSON values."""
        return asdict(self)

    @classmethod
    def restored(cls, saved: Mapping[str, Any]) -> Verdict:
        """The inverse of `saved`."""
        first, best = (None if pair is None else _pair(*pair) for pair in (saved["first"], saved["best"]))
        return cls(first, best, saved["strikes"])


def _estimate(scalars: Mapping[str, float], name: str) -> Estimate | None:
    values = [scalars.get(f"heldout/{name}/{what}", math.nan) for what in ("mean", "std", "count")]
    return Estimate(*values) if all(map(math.isfinite, values)) else None


def _pair(truth: Mapping[str, float], proxy: Mapping[str, float]) -> tuple[Estimate, Estimate]:
    return Estimate(**truth), Estimate(**proxy)
