"""How runs stand or ended, read from their folders."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from common.errors import ConfigError
from deploy.results import RunFolder
from deploy.watch import summarise


@dataclass(frozen=True)
class StatusOptions:
    """Show one run, or all of them, newest first."""

    run: str = ""
    """Name of a run; default: every run of the folder."""
    runs_dir: Path = Path("runs")
    """Where run folders are."""
    json: bool = False
    """For scripts."""


def show(options: StatusOptions) -> int:
    """Print; the exit code."""
    if options.run:
        folders = [options.runs_dir / options.run]
        if not folders[0].is_dir():
            raise ConfigError(f"there is no run {options.run!r} in {options.runs_dir}; `drover status` lists them")
    else:
        found = (path for path in options.runs_dir.glob("*") if (path / "metrics.jsonl").exists())
        folders = sorted(found, key=lambda path: -(path / "metrics.jsonl").stat().st_mtime)
    states = {folder.name: state(folder) for folder in folders}
    if options.json:
        print(json.dumps(states, indent=2))
        return 0
    if not states:
        print(f"no runs in {options.runs_dir}")
    for name, found_state in states.items():
        print(_line(name, found_state))
    return 0


def state(path: Path) -> dict[str, object]:
    """The summary of a run that ended, or what its reports say so far."""
    folder = RunFolder(path)
    if folder.summary.exists():
        finished: dict[str, object] = json.loads(folder.summary.read_text())
        return finished
    quiet_s = time.time() - folder.metrics.stat().st_mtime if folder.metrics.exists() else float("nan")
    return summarise(folder.reports()) | {"ended": None, "quiet_s": round(quiet_s, 1)}


def _line(name: str, found: dict[str, object]) -> str:
    rewards = found["reward_after"] or found["reward_before"]
    assert isinstance(rewards, dict)
    told = ", ".join(f"{reward} {value:.3f}" for reward, value in rewards.items())
    state = found["ended"] or f"running or killed, last heard of {found['quiet_s']} s ago"
    return f"{name}: {state}; {found['updates']} updates, {found['samples']} samples; held out: {told or 'not evaluated yet'}"
