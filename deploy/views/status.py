"""`drover status`: prints a line for each run, or all numbers of one run, from their folders and their processes' metrics."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from drover.common.errors import ConfigError, DroverError
from drover.deploy.run_folder.history import duration, number, of_row
from drover.deploy.run_folder.results import RunFolder
from drover.deploy.views.standing import standing

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

BAR = 32  # columns of the bar of a role's time
PART_STYLES = {
    "compute": "green",
    "data": "blue",
    "weights": "magenta",
    "checkpoint": "cyan",
    "wait_data": "yellow",
    "wait_reward": "red",
    "back_pressure": "bright_black",
}
SHADES = {"compute": "█", "data": "▓", "weights": "▓", "checkpoint": "▓"}  # parts that wait are drawn light


@dataclass(frozen=True)
class StatusOptions:
    """Show one run, or all of them, newest first."""

    run: tyro.conf.Positional[str] = ""
    """Name of a run; default: every run of the folder."""
    runs_dir: Path = Path("runs")
    """Folder of the run folders."""
    json: bool = False
    """Print JSON, for scripts."""


def run(options: StatusOptions) -> int:
    """Print the state of one run or of all runs; return the exit code."""
    states = _one(options) if options.run else _all(options.runs_dir)
    if options.json:
        print(json.dumps(states, indent=2))
    elif not states:
        print(f"no runs in {options.runs_dir}")
    elif options.run:
        _show(options.run, states[options.run])
    else:
        for name, state in states.items():
            print(line(name, state))
    return 0


def _one(options: StatusOptions) -> dict[str, dict[str, Any]]:
    folder = options.runs_dir / options.run
    if not folder.is_dir():
        raise ConfigError(f"there is no run {options.run!r} in {options.runs_dir}; `drover status` lists them")
    return {options.run: standing(RunFolder(folder))}


def _all(runs_dir: Path) -> dict[str, dict[str, Any]]:
    """Return name -> numbers of the run, or {"damaged": reason} for an unreadable one; newest first."""
    found = (path for path in runs_dir.glob("*") if (path / "metrics.jsonl").exists())
    states: dict[str, dict[str, Any]] = {}
    for folder in sorted(found, key=lambda path: -(path / "metrics.jsonl").stat().st_mtime):
        try:
            states[folder.name] = standing(RunFolder(folder))
        except DroverError as error:
            states[folder.name] = {"damaged": str(error)}
    return states


def line(name: str, state: Mapping[str, Any]) -> str:
    """Describe one run in one line."""
    if "damaged" in state:
        return f"{name}: damaged; {state['damaged']}"
    rewards = state["reward_after"] or state["reward_before"]
    told = ", ".join(f"{reward} {value:.3f}" for reward, value in rewards.items())
    done = f"{state['updates']} updates, {state['samples']} samples"
    return f"{name}: {_state(name, state)}; {done}; held out: {told or 'not evaluated yet'}"


def _state(name: str, state: Mapping[str, Any]) -> str:
    """Describe the state of the run, with the command that goes on with it."""
    now, quiet_s = state["now"], state["quiet_s"]
    heard = "no report yet" if quiet_s is None else f"last report {quiet_s:.1f} s ago"
    since = (
        "ever"
        if quiet_s is None
        else f"since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(time.time() - quiet_s))}"
    )
    words = {
        "starting": f"starting ({now['phase']}, {heard})",
        "running": f"running (update {now['update'] or 0:.0f} of {now['updates_total'] or 0:.0f}, {heard})",
        "stopped": f"stopped, go on with --resume {name}",
        "failed": f"failed: {state['reason']}",
        "lost": f"lost: its process is gone, no report {since}; go on with --resume {name}",
    }
    return words.get(state["state"], state["state"])


# -------------------------------------------------------------------------------------------- of one run


def _show(name: str, state: Mapping[str, Any]) -> None:
    from rich.console import Console

    console = Console(width=min(shutil.get_terminal_size((100, 24)).columns, 120), highlight=False)
    console.print(line(name, state), soft_wrap=True)
    if state["now"]["update"] is not None:
        console.print(view(state))


def view(state: Mapping[str, Any]) -> Table:
    """Return the table of `drover status RUN`, a labelled line for each subject; lines without facts are left out."""
    from rich.table import Table

    now = state["now"]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    rows: list[tuple[str, str | Text]] = [
        ("rewards", _rewards(state)),
        ("policy", _policy(now)),
        ("throughput", _each(now["samples_per_s"], "/s") + _since(now)),
        ("workers", _each(now["workers"])),
        *_bars(now["account_s"]),
        ("ledger", _each(now["ledger"]).replace("in_flight", "in flight")),
        ("queues", "   ".join(_queue(name, queue) for name, queue in now["queues"].items())),
        ("reward delay", _each(now["reward_delay_s"], " s")),
        ("weight sync", _each(now["weight_sync_s"], " s")),
        ("cost", _each(now["seconds_per_sample"], " s a sample of one worker's time")),
        ("masked", _each(now["masked_samples"], " samples")),
        ("redis", _redis(now["redis_bytes"])),
        ("elapsed", f"{duration(state['wall_s'])}, first update after {duration(state['first_update_s'])}"),
        *(("event", event) for event in now["events"]),
    ]
    for label, said in rows:
        if said:
            grid.add_row(label, said)
    return grid


def _rewards(state: Mapping[str, Any]) -> str:
    now, before = state["now"], state["reward_before"]
    return "   ".join(
        f"{name} {number(value)}"
        + (
            f" (held out {number(of_row(before, name))} -> {number(held)})"
            if (held := now["held_out"].get(name))
            else ""
        )
        for name, value in now["rewards"].items()
    )


def _policy(now: Mapping[str, Any]) -> str:
    facts = [
        ("lag", now["lag"], "g"),
        ("of at most", now["lag_bound"], "g"),
        ("first ratio", now["ratio_first"], ".4f"),
    ]
    facts.append(("clipped", now["clip_fraction"], ".1%"))
    return "   ".join(f"{name} {value:{form}}" for name, value, form in facts if value is not None)


def _since(now: Mapping[str, Any]) -> str:
    return "   (the learner's last updates; others since they started)" if now["live"] else ""


def _each(values: Mapping[str, float | None], unit: str = "") -> str:
    return "   ".join(
        f"{name} {value if isinstance(value, int) else f'{value:.3g}'}{unit}"
        for name, value in values.items()
        if value is not None
    )


def _queue(name: str, queue: Mapping[str, Any]) -> str:
    age_s = queue["age_s"]
    return f"{name} {queue['backlog']}" + (f" ({age_s:.1f} s)" if age_s else "")


def _redis(memory: Mapping[str, float | None]) -> str:
    used, limit = memory["used"], memory["limit"]
    if used is None:
        return ""
    return f"{used / 2**20:.0f} MiB" + (
        f" of {limit / 2**20:.0f}, {used / limit:.0%}" if limit else ", without a limit"
    )


def _bars(account_s: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, Text]]:
    """Give each role's time as a bar of its parts, the largest first, with their shares."""
    from rich.text import Text

    for role, parts in account_s.items():
        whole_s = sum(parts.values())
        if not whole_s:
            continue
        bar, done_s, drawn = Text(), 0.0, 0
        ranked = sorted(parts.items(), key=lambda part: -part[1])
        for part, seconds in ranked:
            done_s += seconds
            columns = round(BAR * done_s / whole_s) - drawn
            drawn += columns
            bar.append(SHADES.get(part, "░") * columns, style=PART_STYLES.get(part, "dim"))
        shares = [f"{part.replace('_', ' ')} {s / whole_s:.0%}" for part, s in ranked if s / whole_s >= 0.01]
        yield f"{role}'s time", bar + Text("  " + ", ".join(shares))
