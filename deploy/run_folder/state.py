"""How a run stands: starting, running, finished, stopped, failed or lost."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from drover.deploy.run_folder.results import LOCK, RunFolder, holder

Name = Literal["starting", "running", "finished", "stopped", "failed", "lost"]
FRESH_S = 60.0  # a report that young is of a living driver, where nothing better is to be seen of it


@dataclass(frozen=True, slots=True)
class RunState:
    """Example: ``RunState("failed", "point-0 failed: FileNotFoundError: no weights")``."""

    name: Name
    reason: str = ""  # of a run that failed
    quiet_s: float | None = None  # since the newest report of a run that has not ended; None before the first

    @property
    def over(self) -> bool:
        """Whether no process works on the run."""
        return self.name not in ("starting", "running")


def run_state(folder: RunFolder, answers: Callable[[], bool]) -> RunState:
    """``answers``: whether the driver answers where it serves metrics; asked where the folder alone does not tell."""
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
    """A lock that is held says it. One that is free says nothing where locks of another host are not seen from here."""
    held, by = holder(folder / LOCK)
    here = not by or by.endswith(f" on {socket.gethostname()}")
    if held is None or not (held or here):
        return answers() or (quiet_s is not None and quiet_s < FRESH_S)
    return held
