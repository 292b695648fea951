"""Describes a run that has ended in a few lines: the rise of held-out rewards with errors, its size, and its result files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = ("samples.png", "curves.png", "summary.json", "pipeline", "lora")


def last_words(summary: Mapping[str, Any], folder: Path) -> list[str]:
    """Return the lines."""
    told = [
        *(_rise(name, after, summary) for name, after in summary["reward_after"].items()),
        f"{summary['updates']} updates, {summary['samples']} samples in {summary['command_s']:.0f} s; "
        f"largest lag {summary['max_lag_seen']}",
        *(f"  {folder / name}" for name in RESULTS if (folder / name).exists()),
    ]
    if summary["ended"] != "finished":
        told.append(f"stopped early; go on with the same command and --resume {summary['run']}")
    return told


def _rise(name: str, after: float, summary: Mapping[str, Any]) -> str:
    before, limit = summary["reward_before"].get(name), summary["reward_limit"].get(name)
    gain = summary["heldout"].get(name)
    if gain is not None:
        told = f"{_sure(gain['before'])} before, {_sure(gain['after'])} after: {_sure(gain['rise'], sign='+')}{_verdict(gain)}"
    elif before is not None:
        told = f"{before:.3g} before, {after:.3g} after: {after - before:+.3g}"
    else:
        told = f"{after:.3g} after"
    return f"held-out {name}: {told}" + (
        f"; best possible with so few samples: {limit:.3g}" if limit is not None else ""
    )


def _sure(mean: Mapping[str, Any], sign: str = "") -> str:
    """Format a mean with its standard error, if it has one: ``5.42 ± 0.11``."""
    error = mean["error"]
    return f"{mean['mean']:{sign}.3g}" + ("" if error is None else f" ± {error:.2g}")


def _verdict(gain: Mapping[str, Any]) -> str:
    rise = gain["rise"]
    unclear = rise["error"] is not None and abs(rise["mean"]) <= 2 * rise["error"]
    count = f"{rise['count']} samples, the same prompts and noise"
    return f" ({count}{'; too few samples to tell' if unclear else ''})"
