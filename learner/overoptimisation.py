"""Notice when a learned reward goes on rising while what it stands for falls (Goodhart's law; arXiv 2210.10760)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from common.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """``truth`` and ``proxy`` are held-out rewards. ``stop`` ends the run at the ``patience``-th evaluation in a row at
    which the truth lies more than ``margin`` standard errors below its best while the proxy is above what it was then.
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


@dataclass(slots=True)
class Verdict:
    """What the evaluations so far say. ``best`` is (truth, its standard error, proxy) where the truth was highest."""

    best: tuple[float, float, float] | None = None
    strikes: int = 0

    def hear(self, watch: Watch, scalars: Mapping[str, float]) -> dict[str, float]:
        """Take one evaluation in; what there is to report of it. Nothing, where one of the two was not measured."""
        truth, proxy = (scalars.get(f"heldout/{name}/mean", math.nan) for name in (watch.truth, watch.proxy))
        if math.isnan(truth) or math.isnan(proxy):
            return {}
        error = scalars[f"heldout/{watch.truth}/std"] / math.sqrt(scalars[f"heldout/{watch.truth}/count"])
        if self.best is None or truth > self.best[0]:
            self.best = (truth, error, proxy)
        fell = self.best[0] - truth > watch.margin * math.hypot(error, self.best[1])
        self.strikes = self.strikes + 1 if fell and proxy > self.best[2] else 0
        return {"overoptimisation/gap": proxy - truth, "overoptimisation/strikes": float(self.strikes)}
