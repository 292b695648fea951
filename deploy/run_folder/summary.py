"""Writes summary.json and the pictures from the reports of a run that has ended, also of one that failed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np

from drover.common.errors import CheckpointError, ConfigError, DroverError
from drover.common.types import Report
from drover.common.user_code import sentence
from drover.deploy.run_folder.gains import gains
from drover.deploy.run_folder.pictures import paired
from drover.deploy.run_folder.results import RunFolder
from drover.deploy.run_folder.watch import MOMENTS

log = logging.getLogger(__name__)


def conclude(folder: RunFolder, facts: Mapping[str, object]) -> dict[str, object]:
    """Write summary.json and the pictures of a run that is over; return the summary, which includes ``facts``."""
    reports = folder.reports()
    summary = summarise(reports) | {"heldout": _gains(folder)} | dict(facts)
    folder.write_summary(summary)
    if any(report.kind == "update" for report in reports):
        folder.draw_curves()
    pictures = {moment: folder.path / f"{moment}.npz" for moment in MOMENTS}
    if all(path.exists() for path in pictures.values()):
        pair = paired(*(np.load(pictures[moment], allow_pickle=False) for moment in MOMENTS))
        if pair is not None:
            folder.draw_samples(pair)
    return summary


def _gains(folder: RunFolder) -> dict[str, object]:
    try:
        return {name: asdict(gain) for name, gain in gains(folder.path).items()}
    except CheckpointError as error:
        log.warning("the errors of the held-out means are left out: %s", error)
        return {}


def conclude_badly(folder: RunFolder, error: BaseException, facts: Mapping[str, object]) -> None:
    """Write the summary of a run that ``error`` ended.

    The folder is removed instead if a `ConfigError` or the user ended the run before its first update.
    """
    stopped = isinstance(error, KeyboardInterrupt)
    if (stopped or isinstance(error, ConfigError)) and not folder.begun:
        folder.discard()
        return
    folder.release()
    reason = str(error) if isinstance(error, DroverError) else "interrupted" if stopped else sentence(error)
    try:
        conclude(folder, {**facts, "ended": "stopped" if stopped else "failed", "reason": reason})
    except (DroverError, OSError) as second:  # the first error is the one to report
        log.warning("the end of the run is not written down: %s", second)


def summarise(reports: list[Report]) -> dict[str, object]:
    """Return the numbers of a run: held-out rewards before and after, updates, samples, seconds, lag and ledger."""
    last = next((r for r in reversed(reports) if r.kind in ("end", "update")), None)
    updates = [r for r in reports if r.kind == "update"]
    ledger = {key.removeprefix("ledger/"): int(value) for key, value in _scalars(last) if key.startswith("ledger/")}
    return {
        "reward_before": _heldout(reports, "before"),
        "reward_after": _heldout(reports, "after"),
        "reward_limit": _heldout(reports, "after", "limit"),
        "updates": int(dict(_scalars(last)).get("update", 0)),
        "samples": int(dict(_scalars(last)).get("samples", 0)),
        "wall_s": round(last.at_s, 2) if last else 0.0,
        "first_update_s": round(updates[0].at_s, 2) if updates else None,
        "max_lag_seen": int(max((r.scalars.get("lag_max", 0.0) for r in updates), default=0)),
        "ledger": ledger,
        "ended": last.text if last is not None and last.kind == "end" else "stopped",
    }


def _scalars(report: Report | None) -> list[tuple[str, float]]:
    return [] if report is None else list(report.scalars.items())


def _heldout(reports: list[Report], moment: str, what: str = "mean") -> dict[str, float]:
    """Return "SET/REWARD" -> value, from the newest evaluation "before" or "after" training."""
    found = [r for r in reports if r.kind == "eval" and r.text == moment]
    if not found:
        return {}
    return {
        name.removeprefix("heldout/").removesuffix(f"/{what}"): value
        for name, value in found[-1].scalars.items()
        if name.startswith("heldout/") and name.endswith(f"/{what}")
    }
