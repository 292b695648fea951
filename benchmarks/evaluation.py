"""Measures how far evaluations slow training: trained samples per second with an evaluation after every update, and without.

    python -m benchmarks.evaluation [--quick] [--json] [--out FILE]

Each side is a run of the whole service, `drover train` on the recipe of `benchmarks/paced.py`: training waits for two
actors, and every role sleeps where it would compute on a device of its own. The sides take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import measure
from benchmarks.measure import Spread

GOAL = 0.99
FIRST_UPDATE = 5  # the run is steady from here on
RUN_TIMEOUT_S = 900.0
ROOT = Path(__file__).resolve().parents[1]
BUSY = ("--score-s", "0.085")  # a reward that works 85 % of the time for training alone


@dataclass(frozen=True, slots=True)
class Side:
    """A way to run the service, and the name of the side to compare with."""

    name: str
    arguments: tuple[str, ...]
    against: str = ""


NONE, BUSY_NONE = "none", "none, busy reward"
SIDES = (
    Side(NONE, ()),
    Side("by an evaluator, other rewards", ("--evaluate-every", "1", "--evaluators", "1"), NONE),
    Side("by the actors, other rewards", ("--evaluate-every", "1"), NONE),
    Side(BUSY_NONE, BUSY),
    Side(
        "by an evaluator, also by the busy reward",
        ("--evaluate-every", "1", "--evaluators", "1", "--judged-by", "both", *BUSY),
        BUSY_NONE,
    ),
)


@dataclass(frozen=True, slots=True)
class Run:
    """The figures of one run's steady part."""

    samples_per_s: float  # trained
    evaluations: int  # reported while it trained
    took_s: float  # mean seconds of these evaluations


def run(side: Side, iterations: int) -> Run:
    """Run the service once. Raises RuntimeError with the end of its output if it fails."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable,
            "-c",
            "from drover.deploy.cli import main; main()",
            "train",
            "benchmarks/paced.py:paced",
        ]
        command += ["--iterations", str(iterations), *side.arguments]
        command += ["--run-name", "evaluation", "--runs-dir", scratch, "--json"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # every process can import the recipe
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, timeout=RUN_TIMEOUT_S, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{side.name}: code {done.returncode}: {done.stderr[-2000:].decode()}")
        lines = (Path(scratch) / "evaluation" / "metrics.jsonl").read_text().splitlines()
    return summarise([json.loads(line) for line in lines])


def summarise(reports: Sequence[Mapping[str, Any]]) -> Run:
    """Compute the figures from the reports of a run, in order."""
    updates = [report for report in reports if report["kind"] == "update"]
    first, last = updates[FIRST_UPDATE - 1], updates[-1]
    found = [report for report in reports if report["kind"] == "eval"]
    _check(found)
    during = [report["scalars"]["evaluation/took_s"] for report in found if report["text"] == "during"]
    samples = last["scalars"]["samples"] - first["scalars"]["samples"]
    return Run(samples / (last["at_s"] - first["at_s"]), len(during), mean(during) if during else 0.0)


def _check(found: Sequence[Mapping[str, Any]]) -> None:
    """Assert that each evaluation was whole, and that each had a version of its own."""
    for report in found:
        assert report["scalars"]["evaluation/lost_orders"] == 0, report
        assert report["version"] == report["scalars"]["weights_version"] == report["scalars"]["update"], report
    assert all(earlier["version"] < later["version"] for earlier, later in pairwise(found)), found


def main() -> None:
    chosen = measure.options(__doc__.splitlines()[0] if __doc__ else "")
    facts = measure.machine()
    repeats, iterations = (1, 12) if chosen.quick else (3, 60)
    turns = {side.name: partial(run, side, iterations) for side in SIDES}
    found = measure.alternate(repeats, turns, warmups=0)
    rates = {name: [each.samples_per_s for each in runs] for name, runs in found.items()}
    ratios = {side.name: measure.ratio(rates[side.name], rates[side.against]) for side in SIDES if side.against}
    _show(chosen, facts, found, ratios)


def _show(
    chosen: argparse.Namespace,
    facts: Mapping[str, Any],
    found: Mapping[str, Sequence[Run]],
    ratios: Mapping[str, Spread],
) -> None:
    whole: dict[str, dict[str, Any]] = {}
    rows = []
    for name, runs in found.items():
        rate = Spread.of([each.samples_per_s for each in runs])
        count, took_s = Spread.of([each.evaluations for each in runs]), Spread.of([each.took_s for each in runs])
        ratio = ratios.get(name)
        whole[name] = {"samples_per_s": rate.as_dict(), "ratio": ratio.as_dict() if ratio else None}
        whole[name] |= {"evaluations": count.as_dict(), "took_s": took_s.as_dict()}
        cells = [rate.text(4), ratio.text(4) if ratio else ""]
        rows.append([name, *cells, measure.significant(count.median), measure.significant(took_s.median)])
    columns = ("evaluations while training", "trained samples/s", f"ratio (goal {GOAL})", "evaluations", "s each")
    measure.show(
        chosen, facts, {"goal": GOAL, "sides": whole}, [measure.table("Evaluation beside training", columns, rows)]
    )


if __name__ == "__main__":
    main()
