"""Send rank 0's reports: to people on the reports stream, to Prometheus as metrics."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from drover.common import metrics
from drover.common.metrics import Account
from drover.common.protocols import Meter
from drover.common.types import Ending, Report
from drover.learner.examples import MeasuredGroup
from drover.learner.intake.evaluation import Evaluated
from drover.learner.intake.intake import Intake, LearnerStreams
from drover.learner.overoptimisation import Watch
from drover.learner.reporting.statistics import costs, rewards_by_name
from drover.learner.saving.progress import Progress
from drover.learner.step import StepStats

PACE_UPDATES = 10


@dataclass(frozen=True, slots=True)
class Updated:
    """One iteration's optimiser steps, the step on files after them, the lags of its groups in versions, and seconds by part."""

    stats: Sequence[StepStats]
    files: StepStats | None
    lags: Sequence[int]
    times: Mapping[str, float]

    def scalars(self) -> dict[str, float]:
        """Means over the iteration's steps, and the ratio of its first step, which is 1 where a run is on-policy."""
        found = dict(self.times)
        if self.lags:
            found |= {"lag_max": float(max(self.lags)), "lag_mean": sum(self.lags) / len(self.lags)}
        if self.stats:
            first = self.stats[0].watched
            found |= {f"{name}_first": first[name] for name in ("ratio", "clip_fraction") if name in first}
            found |= {name: fmean(step.watched[name] for step in self.stats) for name in first}
            found["loss"] = fmean(step.loss for step in self.stats)
            found["grad_norm"] = fmean(step.grad_norm for step in self.stats)
        beside = [step.parts[0] for step in self.stats if len(step.parts) > 1]
        if beside:
            found["files/loss"] = fmean(part.loss for part in beside)
        if self.files is not None:
            found |= {"files/loss": self.files.loss, "files/grad_norm": self.files.grad_norm}
            found |= {f"files/{name}": value for name, value in self.files.watched.items()}
            if self.stats:
                found["files/grad_ratio"] = self.files.grad_norm / max(self.stats[-1].grad_norm, 1e-12)
        return found


class Reporter:
    """Sends rank 0's reports, for people, and sets its metrics, for Prometheus."""

    def __init__(
        self,
        intake: Intake,
        streams: LearnerStreams,
        meter: Meter,
        account: Account,
        *,
        updates_total: int,
        max_lag: int,
        watch: Watch | None,
    ) -> None:
        self._intake, self._streams, self._meter, self._account = intake, streams, meter, account
        self._updates_total, self._max_lag, self._watch = updates_total, max_lag, watch
        self._told: dict[str, int] = {}  # the ledger's counts that the metrics already contain
        meter.add(metrics.UPDATES, 0)  # served from the start, so that an alert can see a run without a first update
        meter.set(metrics.LAG_BOUND, max_lag)
        self._paces: deque[tuple[float, int]] = deque(maxlen=PACE_UPDATES)  # (at_s, samples) of the last updates

    def evaluated(self, found: Evaluated, progress: Progress) -> None:
        """Report a complete evaluation, under its own version and update."""
        scalars = found.scalars()
        for (held, reward), values in found.values.items():
            if values.size:
                self._meter.set(metrics.HELDOUT_MEAN, float(values.mean()), set=held, reward=reward)
        if self._watch is not None:
            scalars |= progress.verdict.hear(self._watch, scalars)
            if "overoptimisation/gap" in scalars:
                self._meter.set(metrics.OVEROPTIMISATION_GAP, scalars["overoptimisation/gap"])
        self._send("eval", progress, scalars, found.due.moment, found)

    def update(self, progress: Progress, groups: Sequence[MeasuredGroup], told: Updated) -> None:
        """Report one iteration."""
        scalars = {
            **rewards_by_name(groups),
            **costs(groups),
            **told.scalars(),
            "update": float(progress.update),
            "updates_total": float(self._updates_total),
            "samples": float(progress.samples),
            "samples_per_s": self._pace(progress),
            "max_lag": float(self._max_lag),
        }
        self._meter.add(metrics.UPDATES)
        self._meter.add(metrics.TRAINED_SAMPLES, sum(group.rollout.num_samples for group in groups))
        self._set_gauges(scalars)
        self._send("update", progress, scalars)

    def event(self, text: str, progress: Progress) -> None:
        """Report something that a person should know."""
        self._send("event", progress, {}, text)

    def end(self, progress: Progress, how: str) -> None:
        """Report the end of the run: ``how`` is "finished" or "stopped"."""
        scalars = {
            "update": float(progress.update),
            "samples": float(progress.samples),
            "max_lag_seen": float(progress.max_lag_seen),
        }
        self._send("end", progress, scalars, how)

    def _send(
        self, kind: str, progress: Progress, scalars: dict[str, float], text: str = "", found: Evaluated | None = None
    ) -> None:
        ledger = self._intake.ledger.as_dict()
        self._count(ledger)
        scalars |= {f"ledger/{name}": float(count) for name, count in ledger.items()}
        scalars |= {f"account/learner/{part}": seconds for part, seconds in self._account.seconds().items()}
        for name, stream in (("rollouts", self._streams.rollouts), ("measurements", self._streams.measurements)):
            backlog, age_s = stream.backlog()
            scalars |= {f"queue/{name}/backlog": float(backlog), f"queue/{name}/age_s": age_s}
        self._streams.reports.put(
            Report(
                kind=kind,
                at_s=progress.at_s,
                version=progress.version if found is None else found.due.version,
                scalars=scalars,
                text=text,
                prompts=() if found is None else found.prompts,
                media=() if found is None else found.media,
                values=() if found is None or found.due.moment == "during" else found.judged,
            )
        )

    def _count(self, ledger: Mapping[str, int]) -> None:
        """Raise the metrics' counters to the ledger's counts."""
        known = self._told
        self._meter.add(metrics.GROUPS_ISSUED, max(0, ledger["issued"] - known.get("issued", 0)))
        for ending in Ending:
            self._meter.add(metrics.GROUPS_ENDED, max(0, ledger[ending] - known.get(ending, 0)), ending=ending.value)
        self._meter.set(metrics.GROUPS_IN_FLIGHT, ledger["in_flight"])
        self._told = dict(ledger)

    def _pace(self, progress: Progress) -> float:
        """Samples per second over the last updates, or since the start where there is only one."""
        since_s, samples = self._paces[0] if self._paces else (progress.former_s, 0)
        self._paces.append((progress.at_s, progress.samples))
        return (progress.samples - samples) / max(progress.at_s - since_s, 1e-9)

    def _set_gauges(self, scalars: Mapping[str, float]) -> None:
        gauges = {"lag_max": metrics.LAG, "ratio_first": metrics.RATIO_FIRST, "clip_fraction": metrics.CLIP_FRACTION}
        gauges |= {"grad_norm": metrics.GRAD_NORM, "loss": metrics.LOSS}
        for name, metric in gauges.items():
            if name in scalars:
                self._meter.set(metric, scalars[name])
        for name, value in scalars.items():
            if name.startswith("reward/") and name.endswith("/mean"):
                self._meter.set(metrics.REWARD_MEAN, value, reward=name.split("/")[1])
