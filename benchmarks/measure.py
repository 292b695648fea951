"""Helpers of the benchmarks: run sides in turn, take medians with their spread, describe the machine, print figures."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

T = TypeVar("T")

LIBRARIES = ("torch", "ray", "redis", "diffusers")


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, smallest and largest of repeated measurements, for example ``Spread(1.2, 1.1, 1.9)``."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 3) -> str:
        """Return the median with the range: ``1.20 (1.10-1.90)``."""
        return f"{significant(self.median, digits)} ({significant(self.low, digits)}-{significant(self.high, digits)})"

    def as_dict(self) -> dict[str, float]:
        return {"median": self.median, "min": self.low, "max": self.high}


def alternate(repeats: int, sides: Mapping[str, Callable[[], T]], *, warmups: int = 1) -> dict[str, list[T]]:
    """Run the sides in turn, A B A B..., so that a machine that slows down slows both.

    Returns each side's results in order, without those of the first ``warmups`` rounds.
    """
    kept: dict[str, list[T]] = {name: [] for name in sides}
    for round_number in range(warmups + repeats):
        for name, measure in sides.items():
            value = measure()
            if round_number >= warmups:
                kept[name].append(value)
    return kept


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Return the spread of the ratios of pairs that were measured next to each other."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])


def significant(value: float, digits: int = 3) -> str:
    """Format ``value`` with that many significant digits, never as a power of ten."""
    if value == 0:
        return "0"
    decimals = digits - 1 - floor(log10(abs(value)))
    return f"{value:,.{max(0, decimals)}f}"


# ---------------------------------------------------------------------------------------------- the machine


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Describe the machine and the versions of libraries. ``load`` is the load average of the last minute."""
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
        "load": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    facts = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", facts.read_text()) if facts.exists() else None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def header(facts: Mapping[str, Any]) -> str:
    """Return the facts of `machine` in one line."""
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", *LIBRARIES))
    quiet = "" if facts["load"] < 0.5 else " (not quiet: compare ratios, not times)"
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gb']} GB; {versions}; "
        f"load average {facts['load']}{quiet}"
    )


# --------------------------------------------------------------------------------------------- the command


def options(description: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options that every benchmark has: ``quick``, ``json`` and ``out``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats: a check, not a measurement")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    return parser.parse_args(arguments)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Make a table with the first column aligned left and the others right."""
    made = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left")
    for row in rows:
        made.add_row(*row)
    return made


def show(
    chosen: argparse.Namespace, facts: Mapping[str, Any], found: Mapping[str, Any], tables: Sequence[Table]
) -> None:
    """Print the figures as tables or JSON and write the file, as the options say."""
    whole = {"machine": dict(facts), "quick": chosen.quick, **found}
    if chosen.out is not None:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(json.dumps(whole, indent=2) + "\n")
    if chosen.json:
        print(json.dumps(whole, indent=2))
        return
    console = Console(width=None if os.isatty(1) else 140)
    console.print(header(facts), highlight=False)
    for each in tables:
        console.print(each)
