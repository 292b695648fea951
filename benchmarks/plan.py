"""Compares the predictions of `drover plan` with the measured pace of the service: `python -m benchmarks.plan`.

The roles sleep, so that a small machine can run a large service of real processes, Ray and Redis, scaled while they run.
Each mix of costs is measured once, with one worker for each role and a lag of one. From this measurement every other
configuration of the mix is predicted, then set with `drover scale` and measured.
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.measure import significant, table
from drover.common.errors import ConfigError
from drover.deploy.planning.forecast import ROLLOUT, forecast
from drover.deploy.planning.plan import Measured, Scenario
from drover.deploy.planning.plan import measure as measured_of
from drover.deploy.run_folder.results import RunFolder

GOAL = 0.10
REWARD = "point"
RECIPE = f"{Path(__file__).with_name('sleepers.py')}:sleepers"
DROVER = str(Path(sys.executable).with_name("drover"))
UPDATES, SECONDS = 14, 9.0  # a configuration is measured over at least so many updates and seconds
PATIENCE_S = 600.0
LOOK_S = 0.5

Size = tuple[int, int]
"""Actors and reward servers."""


@dataclass(frozen=True, slots=True)
class Mix:
    """The seconds of a sample in each role, and the configurations to try: lag -> sizes, in order."""

    name: str
    rollout_s: float
    reward_s: float
    learn_s: float
    sizes: Mapping[int, tuple[Size, ...]]
    reward_batch: int = 64


BASE: Size = (1, 1)
MIXES = (
    Mix("sampling is dear", 0.04, 0.008, 0.004, {1: (BASE, (2, 1), (3, 1), (4, 2)), 0: ((2, 1), (4, 1))}),
    Mix("scoring is dear", 0.02, 0.04, 0.004, {1: (BASE, (2, 2), (2, 3)), 2: ((3, 3), (4, 2))}, reward_batch=8),
    Mix("learning is dear", 0.02, 0.01, 0.012, {1: (BASE, (2, 1)), 0: ((2, 1), (4, 2))}),
)
QUICK = (Mix("sampling is dear", 0.02, 0.004, 0.002, {1: (BASE, (2, 1))}),)


@dataclass(frozen=True, slots=True)
class Row:
    """The predicted and measured pace of one configuration."""

    mix: str
    max_lag: int
    size: Size
    predicted: float  # samples/s
    measured: float
    limiting: str

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def main() -> None:
    chosen = measure.options(__doc__.splitlines()[0] if __doc__ else "")
    facts = measure.machine()
    rows = [row for mix in (QUICK if chosen.quick else MIXES) for row in try_out(mix)]
    predicted = [row for row in rows if not is_base(row)]
    errors = [abs(row.error) for row in predicted]
    whole = {
        "goal": GOAL,
        "configurations": [
            {"mix": r.mix, "max_lag": r.max_lag, "size": r.size, "predicted": r.predicted, "measured": r.measured}
            | {"error": r.error, "limiting": r.limiting, "base": is_base(r)}
            for r in rows
        ],
        "largest_error": max(errors),
        "median_error": statistics.median(errors),
    }
    title = (
        f"{len(predicted)} configurations, predicted from {len(rows) - len(predicted)} others; largest error "
        f"{max(errors):.1%} (goal: at most {GOAL:.0%}), median {statistics.median(errors):.1%}"
    )
    measure.show(chosen, facts, whole, [as_table(title, rows)])


def is_base(row: Row) -> bool:
    """Return whether the others are predicted from this configuration."""
    return row.max_lag == 1 and row.size == BASE


def try_out(mix: Mix) -> Iterator[Row]:
    """Measure every configuration of a mix. The others are predicted from the first."""
    base: Measured | None = None
    for max_lag, sizes in mix.sizes.items():
        with running(mix, max_lag, sizes[0]) as run:
            for size in sizes:
                run.resize(size)
                found = run.measured(size)
                base = base or found
                row = compare(mix, max_lag, size, base, found)
                told = f"{row.predicted:.1f} predicted, {row.measured:.1f} measured"
                print(f"{mix.name}, lag {max_lag}, {size}: {told}", file=sys.stderr, flush=True)
                yield row


def compare(mix: Mix, max_lag: int, size: Size, base: Measured, found: Measured) -> Row:
    predicting = replace(base, shape=replace(base.shape, max_lag=max_lag))
    sizes = {ROLLOUT: size[0], REWARD: size[1]}
    pace = forecast(predicting.shape, predicting.costs, sizes).samples_per_s
    return Row(mix.name, max_lag, size, pace, found.samples_per_s, Scenario.of(predicting, sizes).limiting)


# --------------------------------------------------------------------------------------------- the service


class Running:
    """A running service that can be resized and measured."""

    def __init__(self, process: subprocess.Popen[bytes], folder: RunFolder) -> None:
        self._process, self._folder, self._since = process, folder, 0

    def resize(self, size: Size) -> None:
        """Change the pools with `drover scale`; returns when the workers are there."""
        self._until(lambda: (self._folder.path / "pools.json").exists(), "a driver")
        wanted = {"pool/rollout": float(size[0]), f"pool/reward/{REWARD}": float(size[1])}
        command = [DROVER, "scale", self._folder.path.name, "--runs-dir", str(self._folder.path.parent)]
        command += ["--rollout", str(size[0]), "--reward", f"{REWARD}={size[1]}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        self._until(lambda: {k: self._newest.get(k) for k in wanted} == wanted, f"workers {size}")

    def measured(self, size: Size) -> Measured:
        """Wait until the service has run at that size for long enough; return the measurements."""
        found: list[Measured] = []

        def enough() -> bool:
            try:
                now = measured_of(self._folder.reports(), "the run")
            except ConfigError:
                return False
            if now.sizes != {ROLLOUT: size[0], REWARD: size[1]} or now.updates < UPDATES or now.seconds < SECONDS:
                return False
            found.append(now)
            return True

        self._until(enough, f"{UPDATES} updates at {size}")
        return found[-1]

    @property
    def _newest(self) -> Mapping[str, float]:
        updates = [report for report in self._folder.reports() if report.kind == "update"]
        return updates[-1].scalars if updates else {}

    def _until(self, reached: Any, what: str) -> None:
        gives_up_s = time.monotonic() + PATIENCE_S
        while not reached():
            if self._process.poll() is not None or time.monotonic() > gives_up_s:
                raise SystemExit(f"no {what}; the run {'ended' if self._process.poll() is not None else 'hangs'}")
            time.sleep(LOOK_S)


@contextmanager
def running(mix: Mix, max_lag: int, size: Size) -> Iterator[Running]:
    """Run `drover train` of the sleeping recipe until the block ends."""
    with tempfile.TemporaryDirectory() as runs_dir:
        given: dict[str, object] = {"rollout-s": mix.rollout_s, "reward-s": mix.reward_s, "learn-s": mix.learn_s}
        given |= {"max-lag": max_lag, "actors": size[0], "reward-servers": size[1], "reward-batch": mix.reward_batch}
        given |= {"iterations": 10**5, "runs-dir": runs_dir, "run-name": "plan"}
        command = [DROVER, "train", RECIPE, "--plain", *(word for k, v in given.items() for word in (f"--{k}", str(v)))]
        log = Path(runs_dir) / "out"
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            yield Running(process, RunFolder(Path(runs_dir) / "plan"))
        except SystemExit:
            print(log.read_text(), file=sys.stderr)
            raise
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(timeout=PATIENCE_S)


def as_table(title: str, rows: Sequence[Row]) -> Any:
    cells = [
        [
            row.mix,
            str(row.max_lag),
            str(row.size[0]),
            str(row.size[1]),
            significant(row.predicted),
            significant(row.measured),
            f"{row.error:+.1%}" + (" (base)" if is_base(row) else ""),
            row.limiting,
        ]
        for row in rows
    ]
    heads = ["mix", "max_lag", "actors", "servers", "predicted, samples/s", "measured", "error", "limiting"]
    return table(title, heads, cells)


if __name__ == "__main__":
    main()
