"""Collects the numbers of one run: from its reports, and from the metrics of its processes while they can be reached."""

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

REACH_S = 5.0  # time for the driver to answer, which asks every worker
START = "process_start_time_seconds"

log = logging.getLogger(__name__)

Page = list[tuple[str, dict[str, str], float]]
"""(name, labels, value) of every series of a run."""


def standing(folder: RunFolder) -> dict[str, Any]:
    """Return the numbers of a run: its state, its summary (from its reports before it has ended), and `now` under "now".

    Raises `CheckpointError` for a damaged file.
    """
    reports, state = folder.reports(), state_of(folder)
    quiet_s = None if state.quiet_s is None else round(state.quiet_s, 1)
    told = {"state": state.name, "reason": state.reason, "quiet_s": quiet_s}
    summary = folder.read_summary()
    if summary is not None:
        return summarise(reports) | summary | told | {"now": now(History.of(reports), [])}
    return summarise(reports) | {"ended": None} | told | {"now": now(History.of(reports), page(folder))}


def state_of(folder: RunFolder) -> RunState:
    """Return the state of a run from its folder, or from its driver's answer if the folder does not decide it."""
    return run_state(folder, lambda: bool(page(folder)))


def now(history: History, page: Page) -> dict[str, Any]:
    """Return rewards, health, times, queues and pools of the newest update, and numbers from the processes' metrics.

    "live" is whether the processes answered. Without them, throughput and weight sync are known of the learner only.
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
    """Fetch the metrics of all the run's processes from its driver; [] if the driver cannot be reached."""
    address = folder.driver()
    if address is None:
        return []
    try:
        found = read(fetch(address, "/metrics/all", timeout_s=REACH_S))
    except ValueError as error:
        log.info("no metrics from %s: %s", address, error)
        return []
    return [series for series in found if series[1].get("run") == folder.path.name]  # another run may use the port now


def _throughput(page: Page) -> dict[str, float]:
    """Return samples per second of each role and scores per second of each reward, averaged since their processes started."""
    started = {labels["worker"]: value for name, labels, value in page if name == START}
    found: defaultdict[str, float] = defaultdict(float)
    for metric, label in ((metrics.SAMPLES, "role"), (metrics.SCORED_SAMPLES, "reward")):
        for name, labels, value in page:
            if name == metric.name and labels["worker"] in started:
                found[labels[label]] += value / max(time.time() - started[labels["worker"]], 1e-9)
    return dict(found)


def _means(page: Page, metric: Metric, label: str) -> dict[str, float]:
    """Return label -> mean of a histogram over all its observations."""
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
    """Return role -> part -> seconds."""
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
