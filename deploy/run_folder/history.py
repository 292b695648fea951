"""Collects the reports of a run as series and texts, which views and pictures read. Pure: draws and writes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

from drover.common.types import Report

PACE_UPDATES = 10  # newest updates whose pace gives the time to go


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One evaluation. ``when`` is "before", "during" or "after"; ``means`` and ``counts`` are by "SET/REWARD".

    ``watched`` has the findings of a watch over a proxy: `drover.learner.overoptimisation.Verdict.hear`.
    """

    when: str
    update: int
    means: Mapping[str, float]
    counts: Mapping[str, float]
    watched: Mapping[str, float]


@dataclass(slots=True)
class History:
    """The reports of a run in order, on one clock that goes on when a restarted learner begins again at 0.

    An update that is repeated after a restart replaces the earlier reports of this update and of all later ones.
    """

    phase: str = "starting"
    ended: bool = False
    elapsed_s: float = 0.0  # from the learner's first start to the newest report
    updates: list[Report] = field(default_factory=list)
    evals: list[HeldOut] = field(default_factory=list)
    events: list[Report] = field(default_factory=list)
    rewards: list[str] = field(default_factory=list)  # names in the order of their first report
    _former_s: float = 0.0  # seconds from the learner's first start to its newest one

    @classmethod
    def of(cls, reports: Iterable[Report]) -> History:
        history = cls()
        for report in reports:
            history.add(report)
        return history

    def add(self, report: Report) -> Report:
        """Add one report and return it on the run's clock. Unknown kinds and scalars are ignored."""
        if report.at_s + self._former_s < self.elapsed_s:
            self._former_s = self.elapsed_s
        report = replace(report, at_s=report.at_s + self._former_s)
        self.elapsed_s = report.at_s
        self.ended = report.kind == "end"
        if report.kind == "phase":
            self.phase = report.text
        elif report.kind == "update":
            self.phase = "training"
            self._rewind(update_index(report))
            self.updates.append(report)
            self._meet(by_name(report, "reward/", "/valid_share"))
            self._meet(by_name(report, "reward/", "/mean"))
        elif report.kind == "eval":
            means = by_name(report, "heldout/", "/mean")
            counts, watched = by_name(report, "heldout/", "/count"), by_name(report, "overoptimisation/")
            self.evals.append(HeldOut(report.text, update_index(report), means, counts, watched))
            self._meet(_rows({**counts, **means}))
        elif report.kind == "event":
            self.events.append(report)
        elif report.kind == "end":
            self.phase = report.text or "finished"
        return report

    @property
    def has_ratio(self) -> bool:
        """Whether the run's method reports probability ratios, which show in its first step if actor and learner agree."""
        return bool(self.series("ratio_first")[1])

    @property
    def last(self) -> Mapping[str, float]:
        """Scalars of the newest update; empty before the first."""
        return self.updates[-1].scalars if self.updates else {}

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Return (update indices, finite values) of one scalar of the updates."""
        return _finite((update_index(report), report.scalars.get(name, math.nan)) for report in self.updates)

    def held_out(self, name: str) -> tuple[list[int], list[float]]:
        """Return (update indices, finite means) of the evaluations of "SET/REWARD", or of a reward's first set, in order."""
        return _finite((held.update, of_row(held.means, name)) for held in self.evals)

    def watched(self, what: str) -> tuple[list[int], list[float]]:
        """Return (update indices, finite values) of "truth", "proxy" or their "gap" at the evaluations, in order."""
        return _finite((held.update, held.watched.get(what, math.nan)) for held in self.evals)

    def to_go_s(self) -> float | None:
        """Return the seconds from the newest update to the run's last one at the recent pace. None while no pace is known."""
        window = self.updates[-PACE_UPDATES - 1 :]
        total = self.last.get("updates_total")
        if len(window) < 2 or total is None:
            return None
        first, last = window[0], window[-1]
        pace_s = (last.at_s - first.at_s) / (update_index(last) - update_index(first))
        return max(0.0, (total - update_index(last)) * pace_s)

    def _rewind(self, index: int) -> None:
        while self.updates and update_index(self.updates[-1]) >= index:
            self.updates.pop()

    def _meet(self, names: Iterable[str]) -> None:
        self.rewards += [name for name in names if name not in self.rewards]


def _rows(means: Iterable[str]) -> list[str]:
    """Return the row name of each "SET/REWARD": "REWARD" for the first set of a reward, "SET/REWARD" for further ones."""
    first: dict[str, str] = {}
    for key in means:
        first.setdefault(key.rpartition("/")[2], key)
    return [key.rpartition("/")[2] if key in first.values() else key for key in means]


def of_row(means: Mapping[str, float], name: str) -> float:
    """Return the mean of the row with that name; NaN without one."""
    found = (value for key, value in means.items() if key == name or key.rpartition("/")[2] == name)
    return means.get(name, next(found, math.nan))


def _finite(points: Iterable[tuple[int, float]]) -> tuple[list[int], list[float]]:
    """Return the points with finite values, as two columns."""
    kept = [point for point in points if math.isfinite(point[1])]
    return [x for x, _ in kept], [y for _, y in kept]


def update_index(report: Report) -> int:
    """Return the number of the report's update, from 1; 0 before the first."""
    return int(report.scalars.get("update", 0))


def by_name(report: Report, prefix: str, suffix: str = "") -> dict[str, float]:
    """Return NAME -> value of the scalars called ``prefix NAME suffix``. NAME may contain slashes."""
    return {
        key[len(prefix) : len(key) - len(suffix)]: value
        for key, value in report.scalars.items()
        if key.startswith(prefix) and key.endswith(suffix) and len(key) > len(prefix) + len(suffix)
    }


def sparkline(values: list[float], width: int) -> str:
    """Draw the series in at most ``width`` characters of height 1 to 8; a character shows the mean of neighbours."""
    if not values:
        return ""
    width = min(width, len(values))
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    if high == low:
        return "▄" * width
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (mean - low) / (high - low))] for mean in means)


def duration(seconds: float | None) -> str:
    """Format seconds as ``m:ss`` or ``h:mm:ss``; a dash if unknown."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


def health(history: History) -> list[tuple[str, str, str]]:
    """Return (label, value, style) of the signs of a healthy run: first ratio 1, few clipped, lag in its bound, fast.

    A method without a ratio shows its loss and the norm of its gradient instead.
    """
    last = history.last
    facts: list[tuple[str, str, str]] = []
    if "ratio_first" in last:
        # Without lag the first step is on-policy: a ratio other than 1 is then a bug and no drift.
        off = not last.get("lag_max") and abs(last["ratio_first"] - 1) > 0.01
        facts.append(("first ratio", f"{last['ratio_first']:.4f}", "bold red" if off else ""))
    elif "loss" in last:
        facts += [("loss", number(last["loss"]), ""), ("gradient", number(last.get("grad_norm")), "")]
    if "clip_fraction" in last:
        facts.append(("clip", f"{last['clip_fraction']:.0%}", ""))
    if "approx_kl" in last:
        facts.append(("kl", f"{last['approx_kl']:.2g}", ""))
    if "lag_max" in last:
        bound = f"/{last['max_lag']:.0f}" if "max_lag" in last else ""
        over = last["lag_max"] > last.get("max_lag", float("inf"))
        facts.append(("lag", f"{last['lag_max']:.0f}{bound}", "bold red" if over else ""))
    if "samples_per_s" in last:
        facts.append(("samples/s", f"{last['samples_per_s']:.3g}", ""))
    return facts


def position(history: History) -> str:
    """Return ``update 37/50``; without the total while that is unknown."""
    done = update_index(history.updates[-1]) if history.updates else 0
    total = history.last.get("updates_total")
    return f"update {done}" + (f"/{total:.0f}" if total is not None else "")


def share(part: float) -> str:
    """Format a share as whole percent, rounded down, so that ``100%`` means all."""
    return f"{math.floor(100 * part)}%"


def number(value: float | None) -> str:
    """Format a value with four digits; a dash for None."""
    return "-" if value is None else f"{value:#.4g}".rstrip(".")
