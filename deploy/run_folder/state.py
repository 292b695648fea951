"""Finds the state of a run: starting, running, finished, stopped, failed or lost."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from drover.deploy.run_folder.results import LOCK, RunFolder, holder

Name = Literal["starting", "running", "finished", "stopped", "failed", "lost"]
FRESH_S = 60.0  # without a better sign, a report younger than this means that the driver runs


@dataclass(frozen=True, slots=True)
class RunState:
    """The state of a run. Example: ``RunState("failed", "point-0 failed: FileNotFoundError: no weights")``."""

    name: Name
    reason: str = ""  # of a run that failed
    quiet_s: float | None = None  # since the newest report of a run that has not ended; None before the first

    @property
    def over(self) -> bool:
        """Whether no process works on the run."""
        return self.name not in ("starting", "running")


def run_state(folder: RunFolder, answers: Callable[[], bool]) -> RunState:
    """Return the state of the run. ``answers()``: whether the driver answers at its metrics port.

    It is called only if the folder does not decide the state.
    """
    summary = folder.read_summary()
    if summary is not None:
        ended: Name = summary["ended"]
        return RunState(ended, str(summary.get("reason", "")))
    quiet_s = time.time() - folder.metrics.stat().st_mtime if folder.metrics.exists() else None
    if not _is_run(folder.path, quiet_s, answers):
        return RunState("lost", quiet_s=quiet_s)
    begun = any(report.kind == "update" for report in folder.reports())
    return RunState("running" if begun else "starting", quiet_s=quiet_s)


def _is_run(folder: Path, quiet_s: float | None, answers: Callable[[], bool]) -> bool:
    """Return whether a process works on the run: it holds the lock.

    A free lock decides nothing if the run is on another host whose locks this host may not see. Then the run goes on if
    its driver answers or its newest report is fresh.
    """
    held, by = holder(folder / LOCK)
    here = not by or by.endswith(f" on {socket.gethostname()}")
    if held is None or not (held or here):
        return answers() or (quiet_s is not None and quiet_s < FRESH_S)
    return held
