"""Compares TRL's DDPO with drover on the shapes pipeline, on equal cores: `python -m benchmarks.peers`.

Both have the same weights, prompts and guidance, 10 steps of which 5 are trained, an optimiser step for every 8 samples,
full fine-tune, and JPEG size as the reward; once free, once with a reward that sleeps 200 ms an image. The sides take
turns. TRL is one process with as many threads as there are cores, and once more with one thread on one core, where it is
most efficient; drover splits the cores over processes of one thread.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks.measure import Spread, alternate, cores, machine, options, ratio, show, table
from benchmarks.peers.measure_trl import PEER_PYTHON, PIPELINE, ROOT, measure
from benchmarks.peers.recipe import BATCH

SLEEP_S = 0.2
WARM_UPDATES = 20  # updates of drover that are not timed; TRL's first epoch is not timed either
LOOK_S = 0.1
SPLIT = ["--actors", "1", "--learner-ranks", "1", "--max-lag", "15", "--reward-loops", "10"]


@dataclass(frozen=True, slots=True)
class Run:
    """The figures of one run of one side. ``cores``: the CPU cores that it could use."""

    cores: int
    samples_per_s: float
    samples_per_cpu_s: float
    first_update_s: float
    peak_rss_mb: float
    rewards: list[float]  # kB, mean of each update's 8 samples

    @property
    def samples_per_s_per_core(self) -> float:
        return self.samples_per_s / self.cores

    @property
    def gain_per_cpu_s(self) -> float:
        """Reward gained in kB (mean of the last third of the updates minus that of the first) per CPU-second of all updates."""
        third = len(self.rewards) // 3
        gain = (sum(self.rewards[-third:]) - sum(self.rewards[:third])) / third
        return gain / (len(self.rewards) * BATCH / self.samples_per_cpu_s)


@dataclass(slots=True)
class Usage:
    """Records CPU seconds and memory of a process and its descendants, with the number of updates reported so far."""

    process: psutil.Process
    reports: Path
    series: list[tuple[float, int, float, float]] = field(default_factory=list)  # time, updates, CPU s, resident MB

    def watch(self, done: threading.Event) -> None:
        """Record every `LOOK_S` seconds until ``done`` is set."""
        spent: dict[int, float] = {}
        while not done.wait(LOOK_S):
            resident = 0
            for one in [self.process, *self.process.children(recursive=True)]:
                try:
                    times, memory = one.cpu_times(), one.memory_info()
                except psutil.NoSuchProcess:
                    continue
                spent[one.pid] = times.user + times.system
                resident += memory.rss
            text = self.reports.read_text() if self.reports.exists() else ""
            self.series.append((time.time(), text.count('"kind": "update"'), sum(spent.values()), resident / 1e6))

    def at(self, updates: int) -> tuple[float, float]:
        """Return (time, CPU seconds so far) of the first record with that many updates."""
        return next((at, cpu_s) for at, seen, cpu_s, _ in self.series if seen >= updates)


def run_trl(sleep_s: float, *, threads: int, epochs: int) -> Run:
    found = measure(PIPELINE, threads=threads, reward_sleep_s=sleep_s, epochs=epochs)
    names = ("samples_per_s", "samples_per_cpu_s", "first_update_s", "peak_rss_mb", "rewards")
    return Run(threads, *(found[name] for name in names))


def run_drover(sleep_s: float, *, iterations: int, split: Sequence[str]) -> Run:
    """Run the service as a user starts it, and measure its processes from outside."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [str(Path(sys.executable).parent / "drover"), "train", "benchmarks/peers/recipe.py:peer_setting"]
        command += ["--iterations", str(iterations), "--reward-sleep-s", str(sleep_s), *split]
        command += ["--runs-dir", scratch, "--run-name", "peer", "--json"]
        started, done = time.time(), threading.Event()
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        reports = Path(scratch) / "peer/metrics.jsonl"
        usage = Usage(psutil.Process(process.pid), reports)
        watcher = threading.Thread(target=usage.watch, args=(done,), daemon=True)
        watcher.start()
        _, complaint = process.communicate()
        done.set()
        watcher.join()
        if process.returncode != 0:
            raise RuntimeError(f"drover ended with code {process.returncode}:\n{complaint[-2000:]}")
        told = [json.loads(line) for line in reports.read_text().splitlines()]
    updates = [report["scalars"] for report in told if report["kind"] == "update"]
    (begin_s, begin_cpu_s), (end_s, end_cpu_s) = usage.at(WARM_UPDATES), usage.at(len(updates))
    samples = BATCH * (len(updates) - WARM_UPDATES)
    return Run(
        cores=cores(),
        samples_per_s=samples / (end_s - begin_s),
        samples_per_cpu_s=samples / (end_cpu_s - begin_cpu_s),
        first_update_s=usage.at(1)[0] - started,
        peak_rss_mb=max(resident for *_, resident in usage.series),
        rewards=[scalars["reward/jpeg_small/mean"] for scalars in updates],
    )


def main() -> None:
    chosen = options(__doc__.splitlines()[0])
    if not PEER_PYTHON.exists():
        sys.exit(f"the peer's environment {PEER_PYTHON.parent.parent} is missing; build it with `make bench-env`")
    facts = machine()
    repeats, epochs, iterations = (1, 3, 2 * WARM_UPDATES) if chosen.quick else (3, 21, 120)
    found: dict[str, Any] = {}
    rows = []
    for sleep_s in (0.0, SLEEP_S):
        sides = {f"TRL, {cores()} threads": partial(run_trl, sleep_s, threads=cores(), epochs=epochs)}
        if not sleep_s:
            sides["TRL, 1 thread"] = partial(run_trl, sleep_s, threads=1, epochs=epochs)
        sides["drover"] = partial(run_drover, sleep_s, iterations=iterations, split=SPLIT)
        runs = alternate(repeats, sides, warmups=0)
        found[f"reward sleeps {sleep_s} s"] = {name: [asdict(run) for run in side] for name, side in runs.items()}
        rows += [_row(name, sleep_s, side, runs["drover"]) for name, side in runs.items()]
    columns = [
        "side",
        "reward",
        "samples/s/core",
        "drover is",
        "samples/CPU-s",
        "first update, s",
        "peak MB",
        "kB/CPU-s",
    ]
    show(chosen, facts, found, [table("DDPO on the shapes pipeline, batch 8", columns, rows)])


def _row(name: str, sleep_s: float, side: Sequence[Run], drover: Sequence[Run]) -> list[str]:
    def spread(attribute: str) -> str:
        return Spread.of([getattr(run, attribute) for run in side]).text()

    rates = [[run.samples_per_s_per_core for run in runs] for runs in (drover, side)]
    return [
        name,
        f"sleeps {sleep_s} s" if sleep_s else "free",
        spread("samples_per_s_per_core"),
        "" if side is drover else f"{ratio(*rates).text()} x",
        spread("samples_per_cpu_s"),
        spread("first_update_s"),
        spread("peak_rss_mb"),
        spread("gain_per_cpu_s"),
    ]


if __name__ == "__main__":
    main()
