"""Changes the sizes of pools while a run goes on: `drover scale` writes them into the run folder, and the driver reads them.

| file in runs/NAME | written by | says |
|---|---|---|
| ``pools.json`` | the driver, while it runs | ``{"sizes": {POOL: workers}, "bounds": {POOL: [least, most]}}`` |
| ``scale.json`` | ``drover scale`` | ``{"sizes": {POOL: workers}}``: the requested sizes; it outlives the driver |

So the command works on every machine that sees the run folder. Knows no Ray: `pools.py` starts and stops the workers.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from drover.common.errors import ConfigError
from drover.common.files import write_whole
from drover.common.words import counted
from drover.deploy.cluster.autoscale import Autoscaler, Bounds, Signal, TimeShare
from drover.deploy.run_folder.results import RunFolder, read_json
from drover.deploy.views.standing import state_of

POOLS, SCALE = "pools.json", "scale.json"
ROLLOUT, EVALUATION = "rollout", "evaluation"
WORK = frozenset({"compute", "data", "weights"})  # the parts of an account in which a worker works and does not wait
log = logging.getLogger(__name__)

Sizes = dict[str, int]
"""Pool -> workers."""


# ------------------------------------------------------------------------------------------- the command


@dataclass(frozen=True)
class ScaleOptions:
    """Change how many workers a running run has. Workers that leave finish their work or hand it back; nothing is lost."""

    run: tyro.conf.Positional[str]
    """Name of the run."""
    rollout: int | None = None
    """Number of rollout actors from now on."""
    reward: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=COUNT: number of processes of that reward, or of `rewards` if rewards share processes; may be repeated."""
    evaluation: int | None = None
    """Number of evaluators, if the run has such a pool."""
    auto: bool = False
    """Let the pools that were started with --autoscale follow their load again."""
    runs_dir: Path = Path("runs")
    """Folder of the run folders."""
    json: bool = False
    """Print JSON, for scripts."""


def run(options: ScaleOptions) -> int:
    """Write the requested sizes, which the driver reads within seconds; return the exit code."""
    folder = options.runs_dir / options.run
    facts = _facts(folder)
    asked = _asked(options, facts)
    wished = {} if options.auto else {**_read(folder / SCALE), **asked}
    write_whole(folder / SCALE, (json.dumps({"sizes": wished}, indent=2) + "\n").encode())
    running = not state_of(RunFolder(folder)).over
    if options.json:
        told = {"before": facts["sizes"], "asked": asked, "auto": options.auto, "running": running}
        print(json.dumps(told, indent=2))
    elif not running:
        print(
            f"{options.run} is not running; from its next start on it has {_sizes(asked) or 'the size its load asks for'}"
        )
    elif options.auto:
        print("; ".join(f"{pool}: {least} to {most} workers" for pool, (least, most) in facts["bounds"].items()))
    else:
        print(
            "\n".join(f"{pool}: {facts['sizes'][pool]} -> {counted(count, 'worker')}" for pool, count in asked.items())
        )
    return 0


def _sizes(asked: Sizes) -> str:
    return ", ".join(f"{counted(count, 'worker')} in {pool}" for pool, count in asked.items())


def _facts(folder: Path) -> dict[str, Any]:
    """Read ``pools.json``. Raises `ConfigError` where no driver keeps one."""
    if not folder.is_dir():
        raise ConfigError(f"there is no run {folder.name!r} in {folder.parent}; `drover status` lists them")
    facts: dict[str, Any] | None = read_json(folder / POOLS, dict, "a run that is under way writes another")
    if facts is None or not {"sizes", "bounds"} <= facts.keys():
        raise ConfigError(f"{folder.name} is not running: it has no whole {POOLS}; only a running run can be scaled")
    return facts


def _asked(options: ScaleOptions, facts: Mapping[str, Any]) -> Sizes:
    """Return the requested pool -> workers, checked against the run's pools."""
    asked = pairs(options.reward)
    for pool, count in ((ROLLOUT, options.rollout), (EVALUATION, options.evaluation)):
        if count is not None:
            asked[pool] = count
    for pool, count in asked.items():
        if pool not in facts["sizes"]:
            raise ConfigError(f"{options.run} has no pool {pool!r}; its pools are {', '.join(facts['sizes'])}")
        if count < 1:
            raise ConfigError(f"a pool needs at least one worker, got {pool}={count}")
    if bool(asked) == options.auto:
        raise ConfigError("say either how many workers, as in `--rollout 8 --reward NAME=4`, or --auto")
    if options.auto and not facts["bounds"]:
        raise ConfigError(f"{options.run} was started without --autoscale; say how many workers instead")
    return asked


def pairs(texts: Sequence[str]) -> Sizes:
    """Parse NAME=COUNT, each name once. Raises `ConfigError`."""
    found: Sizes = {}
    for text in texts:
        name, separator, count = text.rpartition("=")
        if not separator or not count.isdigit() or name in found:
            raise ConfigError(
                f"--reward takes NAME=COUNT, each name once, as in `--reward image_reward=4`; got {text!r}"
            )
        found[name] = int(count)
    return found


def bounds(texts: Sequence[str], pools: Collection[str]) -> dict[str, Bounds]:
    """Parse POOL=LEAST:MOST of the pools that may follow their load. Raises `ConfigError`."""
    found: dict[str, Bounds] = {}
    for text in texts:
        pool, _, span = text.rpartition("=")
        least, _, most = span.partition(":")
        if not least.isdigit() or not most.isdigit() or not 1 <= int(least) <= int(most):
            raise ConfigError(
                f"--autoscale takes POOL=LEAST:MOST, from 1 up, as in `--autoscale rollout=1:8`; got {text!r}"
            )
        if pool not in pools or pool in found:
            raise ConfigError(f"--autoscale {text}: name each pool at most once, out of {', '.join(pools)}")
        found[pool] = (int(least), int(most))
    return found


# -------------------------------------------------------------------------------------------- the driver


class Scaling:
    """Decides the size of each pool: the requested size, else the autoscaler's, else the present one."""

    def __init__(self, folder: Path, bounds: Mapping[str, Bounds]) -> None:
        """``bounds``: pool -> (fewest, most) workers, of the pools that may follow their load."""
        self._folder, self._bounds = folder, dict(bounds)
        self._scalers = {pool: Autoscaler(span) for pool, span in self._bounds.items()}
        self._noted: dict[str, Any] = {}
        self._wished: Sizes = {}
        self._complaint = ""

    def wanted(self, signals: Mapping[str, Signal], now_s: float) -> Sizes:
        """Return a size for each pool of ``signals``. ``now_s``: seconds of a clock that never goes back."""
        wished = self._wishes()
        sizes = {pool: self._size(pool, signal, wished, now_s) for pool, signal in signals.items()}
        facts = {"sizes": sizes, "bounds": self._bounds}
        if facts != self._noted:
            write_whole(self._folder / POOLS, (json.dumps(facts, indent=2) + "\n").encode())
            self._noted = facts
        return sizes

    def close(self) -> None:
        """Remove ``pools.json``: the driver ends and reads no requests any more."""
        (self._folder / POOLS).unlink(missing_ok=True)

    def _size(self, pool: str, signal: Signal, wished: Sizes, now_s: float) -> int:
        if pool in wished:
            if pool in self._bounds:
                self._scalers[pool] = Autoscaler(self._bounds[pool])  # it starts without the signals of the meantime
            return wished[pool]
        return self._scalers[pool].wanted(signal, now_s) if pool in self._bounds else signal.size

    def _wishes(self) -> Sizes:
        """Return the requested sizes. A damaged file changes nothing and is logged once: it must not end the run."""
        try:
            self._wished = _read(self._folder / SCALE)
            self._complaint = ""
        except ConfigError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.warning("%s", error)
        return self._wished


def _read(path: Path) -> Sizes:
    """Read the sizes in ``scale.json``; {} without that file. Raises `ConfigError` for a damaged one."""
    try:
        sizes = json.loads(path.read_bytes())["sizes"]
        whole = {str(pool): int(count) for pool, count in sizes.items()}
        if min(whole.values(), default=1) < 1:
            raise ValueError("a pool needs at least one worker")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} names no sizes ({error}); remove it, then run `drover scale` again") from error
    return whole


class Readings:
    """Turns queues, accounts and the learner's reports into a `Signal` for each pool. Keeps the accounts between looks."""

    def __init__(self, backlogs: Callable[[], Mapping[str, tuple[int, float]]]) -> None:
        """``backlogs``: pool -> (messages not acknowledged, age of the oldest in seconds)."""
        self._backlogs = backlogs
        self._busy: dict[tuple[str, str], TimeShare] = {}  # (pool, reward) -> share of working time
        self._waits = TimeShare(frozenset({"wait_data"}))

    def signals(
        self,
        sizes: Mapping[str, int],
        spent: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]],
        update: Mapping[str, float],
    ) -> dict[str, Signal]:
        """Return a signal for each pool.

        ``spent``: pool -> living worker -> reward ("" for an actor) -> seconds by part. ``update``: scalars of the learner's
        newest report.
        """
        backlogs = self._backlogs()
        prefix = "account/learner/"
        learner = {key.removeprefix(prefix): value for key, value in update.items() if key.startswith(prefix)}
        waits = self._waits.look({"learner": learner} if learner else {})
        return {
            pool: Signal(
                size=size,
                alive=len(spent.get(pool, {})),
                busy=self._busiest(pool, spent.get(pool, {})),
                backlog=backlogs.get(pool, (0, 0.0))[0],
                age_s=backlogs.get(pool, (0, 0.0))[1],
                starved=waits if pool == ROLLOUT else None,
            )
            for pool, size in sizes.items()
        }

    def _busiest(self, pool: str, workers: Mapping[str, Mapping[str, Mapping[str, float]]]) -> float:
        """Return the busy share of the pool; of rewards that share processes, that of the busiest, which limits them."""
        kinds: dict[str, dict[str, Mapping[str, float]]] = {}
        for worker, accounts in workers.items():
            for kind, parts in accounts.items():
                kinds.setdefault(kind, {})[worker] = parts
        shares = [
            self._busy.setdefault((pool, kind), TimeShare(WORK)).look(accounts) for kind, accounts in kinds.items()
        ]
        return max(shares, default=0.0)
