"""Where one run stands, as numbers: from its reports, and from its processes' own metrics while they can be reached."""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from typing import Any

from drover.common import metrics
from drover.common.exporter import fetch, read
from drover.common.metrics import Metric
from drover.common.types import Report
from drover.deploy.run_folder.history import History, by_name
from drover.deploy.run_folder.results import RunFolder
from drover.deploy.run_folder.state import RunState, run_state
from drover.deploy.run_folder.summary import summarise

REACH_S = 5.0  # to the driver, which asks every worker
START = "process_start_time_seconds"

log = logging.getLogger(__name__)

Page = list[tuple[str, dict[str, str], float]]
"""(name, labels, value) of every series of a run."""


def standing(folder: RunFolder) -> dict[str, Any]:
    """The state of a run; the summary of one that ended, else what its reports say so far; and under "now" what `now` says.

    Raises `CheckpointError` where a file of the run is damaged.
    """
    reports, state = folder.reports(), state_of(folder)
    quiet_s = None if state.quiet_s is None else round(state.quiet_s, 1)
    told = {"state": state.name, "reason": state.reason, "quiet_s": quiet_s}
    summary = folder.read_summary()
    if summary is not None:
        return summarise(reports) | summary | told | {"now": now(History.of(reports), [])}
    return summarise(reports) | {"ended": None} | told | {"now": now(History.of(reports), page(folder))}


def state_of(folder: RunFolder) -> RunState:
    """How it stands, by its folder and, where that does not tell, by whether its driver answers."""
    return run_state(folder, lambda: bool(page(folder)))


def now(history: History, page: Page) -> dict[str, Any]:
    """Rewards, health, time, queues and pools of the newest update; by role what only the processes' own metrics say.

    "live" is whether they answered. Without them there is the learner's throughput alone.
    """
    newest = history.updates[-1] if history.updates else None
    last = {name: value for name, value in history.last.items() if math.isfinite(value)}
    return {
        "live": bool(page),
        "update": last.get("update"),
        "updates_total": last.get("updates_total"),
        "phase": history.phase,
        "rewards": {name: _newest(history.series(f"reward/{name}/mean")[1]) for name in history.rewards},
        "held_out": {name: _newest(history.held_out(name)[1]) for name in history.rewards},
        "lag": last.get("lag_max"),
        "lag_bound": last.get("max_lag"),
        "ratio_first": last.get("ratio_first"),
        "clip_fraction": last.get("clip_fraction"),
        "ledger": {name: int(count) for name, count in _of(newest, "ledger/").items()},
        "samples_per_s": {"learner": last.get("samples_per_s")} | _throughput(page),
        "account_s": _account(newest),
        "queues": {
            name: {"backlog": int(count), "age_s": last.get(f"queue/{name}/age_s")}
            for name, count in _of(newest, "queue/", "/backlog").items()
        },
        "workers": {name: int(count) for name, count in _of(newest, "pool/").items()},
        "weight_sync_s": {"learner": last.get("weights_sync_s")} | _means(page, metrics.WEIGHT_SYNC_S, "role"),
        "reward_delay_s": _means(page, metrics.REWARD_DELAY_S, "reward"),
        "redis_bytes": {"used": last.get("redis/used_bytes"), "limit": last.get("redis/limit_bytes")},
        "seconds_per_sample": _of(newest, "cost/", "/s_per_sample"),
        "masked_samples": _masked(page),
        "events": [event.text for event in history.events[-3:]],
    }


def page(folder: RunFolder) -> Page:
    """What the run's processes say of themselves, by way of its driver; nothing where that is not to be reached from here."""
    address = folder.driver()
    if address is None:
        return []
    try:
        found = read(fetch(address, "/metrics/all", timeout_s=REACH_S))
    except ValueError as error:
        log.info("no metrics from %s: %s", address, error)
        return []
    return [series for series in found if series[1].get("run") == folder.path.name]  # another may have the port by now


def _throughput(page: Page) -> dict[str, float]:
    """Samples per second of each role, and scores of each reward: on average since each process started."""
    started = {labels["worker"]: value for name, labels, value in page if name == START}
    found: defaultdict[str, float] = defaultdict(float)
    for metric, label in ((metrics.SAMPLES, "role"), (metrics.SCORED_SAMPLES, "reward")):
        for name, labels, value in page:
            if name == metric.name and labels["worker"] in started:
                found[labels[label]] += value / max(time.time() - started[labels["worker"]], 1e-9)
    return dict(found)


def _means(page: Page, metric: Metric, label: str) -> dict[str, float]:
    """Of a histogram, over all it has seen."""
    sums: defaultdict[str, float] = defaultdict(float)
    counts: defaultdict[str, float] = defaultdict(float)
    for name, labels, value in page:
        if name == f"{metric.name}_sum":
            sums[labels[label]] += value
        elif name == f"{metric.name}_count":
            counts[labels[label]] += value
    return {key: sums[key] / count for key, count in counts.items() if count}


def _masked(page: Page) -> dict[str, int]:
    found: defaultdict[str, int] = defaultdict(int)
    for name, labels, value in page:
        if name == metrics.MASKED_SAMPLES.name:
            found[labels["reward"]] += int(value)
    return dict(found)


def _account(report: Report | None) -> dict[str, dict[str, float]]:
    """Role -> part -> seconds."""
    found: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for key, seconds in _of(report, "account/").items():
        role, _, part = key.partition("/")
        found[role][part] = seconds
    return dict(found)


def _of(report: Report | None, prefix: str, suffix: str = "") -> dict[str, float]:
    found = by_name(report, prefix, suffix) if report is not None else {}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _newest(values: list[float]) -> float | None:
    return values[-1] if values else None
