"""`drover plan RUN`: names the role that limits a run, predicts other sizes, and splits a number of workers.

Reads the reports of a run that is under way or has ended; `drover.deploy.planning.forecast` predicts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from drover.common.errors import ConfigError
from drover.common.types import Report
from drover.deploy.cluster.scaling import pairs
from drover.deploy.planning.forecast import LEARNER, ROLLOUT, Costs, Forecast, Shape, forecast, limits, propose
from drover.deploy.run_folder.history import History, by_name
from drover.deploy.run_folder.results import RunFolder

FEWEST_UPDATES = 4
MOST_UPDATES = 60  # older updates may no longer describe the run
WAITS = ("wait_data", "wait_reward")


@dataclass(frozen=True)
class PlanOptions:
    """Predict a run's pace at other sizes from the measured times of its roles, and name the role that limits it."""

    run: tyro.conf.Positional[str]
    """Name of the run, which needs a few updates."""
    budget: int | None = None
    """Workers to split between rollout and rewards; default: the present number."""
    rollout: int | None = None
    """Predict for this number of actors, instead of proposing a split."""
    reward: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=COUNT: predict for this number of processes of that reward; may be repeated."""
    runs_dir: Path = Path("runs")
    """Folder of the run folders."""
    json: bool = False
    """Print JSON, for scripts."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The measurements of a stretch of updates with constant pools. ``sizes``: ``rollout`` and each reward -> workers."""

    shape: Shape
    costs: Costs
    sizes: Mapping[str, int]
    updates: int
    seconds: float
    samples_per_s: float


@dataclass(frozen=True, slots=True)
class Scenario:
    """The predicted pace at certain sizes. ``limits``: role -> how far it limits the pace, as shares that sum to 1."""

    sizes: Mapping[str, int]
    forecast: Forecast
    limits: Mapping[str, float]

    @property
    def limiting(self) -> str:
        """The role that limits the pace most."""
        return max(self.limits, key=lambda role: self.limits[role])

    @classmethod
    def of(cls, measured: Measured, sizes: Mapping[str, int]) -> Scenario:
        shape, costs = measured.shape, measured.costs
        return cls(sizes, forecast(shape, costs, sizes), limits(shape, costs, sizes))


def run(options: PlanOptions) -> int:
    """Measure, predict and print; return the exit code."""
    folder = options.runs_dir / options.run
    if not folder.is_dir():
        raise ConfigError(f"there is no run {options.run!r} in {options.runs_dir}; `drover status` lists them")
    measured = measure(RunFolder(folder).reports(), options.run)
    now = Scenario.of(measured, measured.sizes)
    other = Scenario.of(measured, _other_sizes(options, measured))
    if options.json:
        print(json.dumps(_facts(measured, now, other), indent=2))
        return 0
    console = Console()
    console.print(
        f"measured over {measured.updates} updates: {measured.samples_per_s:.3g} samples/s "
        f"(predicted: {now.forecast.samples_per_s:.3g})",
        highlight=False,
    )
    console.print(_table("now", measured, now))
    console.print(_advice(now), highlight=False)
    if dict(other.sizes) != dict(now.sizes):
        asked = options.rollout is not None or options.reward
        gain = other.forecast.samples_per_s / now.forecast.samples_per_s
        told = f"{other.forecast.samples_per_s:.3g} samples/s, {gain:.2f} x as many; {_advice(other)}"
        console.print()
        console.print(_table("asked for" if asked else "proposed", measured, other))
        console.print(f"{told}\n  {_command(options.run, other.sizes)}", highlight=False, soft_wrap=True)
    return 0


def _other_sizes(options: PlanOptions, measured: Measured) -> dict[str, int]:
    """Return the requested sizes; without a request, the best split."""
    asked = pairs(options.reward) | ({} if options.rollout is None else {ROLLOUT: options.rollout})
    for role, count in asked.items():
        if role not in measured.sizes:
            raise ConfigError(f"{options.run} has no pool {role!r}; its pools are {', '.join(measured.sizes)}")
        if count < 1:
            raise ConfigError(f"a pool needs at least one worker, got {role}={count}")
    if asked and options.budget is not None:
        raise ConfigError("give either --budget, to be split, or the sizes themselves")
    if asked:
        return {**measured.sizes, **asked}
    budget = sum(measured.sizes.values()) if options.budget is None else options.budget
    if budget < len(measured.sizes):
        raise ConfigError(f"{', '.join(measured.sizes)} need a worker each; --budget {budget} is too few")
    return propose(measured.shape, measured.costs, budget)


# ------------------------------------------------------------------------------------------------ measuring


def measure(reports: Sequence[Report], name: str) -> Measured:
    """Measure the newest stretch of updates with constant pools. Raises `ConfigError` if it is too short."""
    steady = _steady(History.of(reports).updates)
    if len(steady) < FEWEST_UPDATES + 1 or not _workers(steady[0]):
        raise ConfigError(
            f"{name} has no {FEWEST_UPDATES + 1} updates in a row with all its workers there and of equal number; "
            "let it run a little longer (a run in one process has no pools to plan)"
        )
    first, last = steady[0].scalars, steady[-1].scalars
    steps = last["update"] - first["update"]
    groups = _gain(first, last, "ledger/trained", "ledger/empty") / steps
    samples = (last["samples"] - first["samples"]) / steps / groups
    sizes = {ROLLOUT: int(last["pool/rollout"]), **{k: int(v) for k, v in _pools(last).items()}}
    shape = Shape(
        groups=round(groups),
        samples=round(samples),
        max_lag=int(last["max_lag"]),
        rewards=tuple(tuple(_scoring(report)) for report in steady[1:]),
        actor_groups=int(last.get("plan/actor_groups", 1)),
        reward_groups=max(1, int(last.get("plan/reward_batch", 1)) // round(samples)),
        reward_loops=int(last.get("plan/reward_loops", 1)),
    )
    seconds = max(steady[-1].at_s - steady[0].at_s, 1e-9)
    return Measured(
        shape=shape,
        costs=_costs(steady, shape, sizes[ROLLOUT], steps),
        sizes={role: count for role, count in sizes.items() if role == ROLLOUT or role in shape.names},
        updates=int(steps),
        seconds=seconds,
        samples_per_s=(last["samples"] - first["samples"]) / seconds,
    )


def _steady(updates: Sequence[Report]) -> list[Report]:
    """Return the newest updates with the same workers and one learner, without those at the start, the end or a change."""
    known = [report for report in updates if "cost/rollout/s_per_sample" in report.scalars]
    if not known:
        return []
    last = known[-1].scalars
    turn = int(last["max_lag"]) + 1
    same: list[Report] = []
    for report in reversed(known):
        if report.scalars["update"] > last["updates_total"] - turn:
            continue  # near the end there are no new orders
        if 0 in _workers(report).values() or (same and not _goes_on(report, same[-1])):
            break
        same.append(report)
    settled = same[: -2 * turn] if len(same) > 2 * turn + FEWEST_UPDATES else same
    return settled[MOST_UPDATES::-1]


def _goes_on(before: Report, after: Report) -> bool:
    """Return whether no worker joined or left between the two reports, and the learner did not restart."""
    spent_s = [sum(by_name(report, "account/learner/").values()) for report in (before, after)]
    return _workers(before) == _workers(after) and spent_s[0] <= spent_s[1]


def _workers(report: Report) -> dict[str, float]:
    return by_name(report, "pool/")


def _pools(scalars: Mapping[str, float]) -> dict[str, float]:
    prefix = "pool/reward/"
    return {key.removeprefix(prefix): value for key, value in scalars.items() if key.startswith(prefix)}


def _scoring(report: Report) -> dict[str, float]:
    """Return reward -> seconds per sample, of the rewards of this iteration."""
    return by_name(report, "cost/reward/", "/s_per_sample")


def _costs(steady: Sequence[Report], shape: Shape, actors: int, steps: float) -> Costs:
    """Return the mean costs over the stretch."""
    first, last = steady[0].scalars, steady[-1].scalars
    iterations = steady[1:]
    rollout_s = _mean([report.scalars["cost/rollout/s_per_sample"] for report in iterations]) * shape.samples
    scored = {name: [_scoring(r)[name] for r in iterations if name in _scoring(r)] for name in shape.names}
    computed_s = _gain(first, last, "account/actor/compute")
    beside = _gain(first, last, "account/actor/data") / computed_s if computed_s > 0 else 0.0
    loads = steps * min(actors, shape.groups)
    learner_parts = [k for k in last if k.startswith("account/learner/") and not k.endswith(WAITS)]
    return Costs(
        rollout_s=rollout_s * (1 + max(0.0, beside)),
        load_s=max(0.0, _gain(first, last, "account/actor/weights")) / loads,
        rewards_s={name: _mean(each) * shape.samples for name, each in scored.items()},
        learner_s=_gain(first, last, *learner_parts) / steps,
    )


def _gain(first: Mapping[str, float], last: Mapping[str, float], *names: str) -> float:
    return sum(last.get(name, 0.0) - first.get(name, 0.0) for name in names)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# ------------------------------------------------------------------------------------------------ printing


def seconds_per_sample(measured: Measured) -> dict[str, float]:
    """Return role -> seconds of one worker for each sample, loading of weights included."""
    shape, costs = measured.shape, measured.costs
    loads_s = costs.load_s * min(measured.sizes[ROLLOUT], shape.groups) / (shape.groups * shape.samples)
    return {
        ROLLOUT: costs.rollout_s / shape.samples + loads_s,
        **{name: costs.rewards_s[name] / shape.samples for name in shape.names},
        LEARNER: costs.learner_s / (shape.groups * shape.samples),
    }


def _table(title: str, measured: Measured, of: Scenario) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(("role", "workers", "s/sample of one", "busy", "decides the pace", "one more")):
        table.add_column(column, justify="right" if number else "left")
    for role, seconds in seconds_per_sample(measured).items():
        more = "-"
        if role in of.sizes:
            sizes = {**of.sizes, role: of.sizes[role] + 1}
            grown = forecast(measured.shape, measured.costs, sizes).samples_per_s
            more = f"{grown / of.forecast.samples_per_s - 1:+.0%}"
        workers = str(of.sizes.get(role, "-"))
        table.add_row(role, workers, f"{seconds:.3g}", f"{of.forecast.busy[role]:.0%}", f"{of.limits[role]:.0%}", more)
    return table


def _advice(of: Scenario) -> str:
    if of.limiting == LEARNER:
        return (
            "the learner limits it: more actors or reward servers would not help, a quicker learner or more ranks would"
        )
    return f"{of.limiting} limits it"


def _command(name: str, sizes: Mapping[str, int]) -> str:
    rewards = "".join(f" --reward {role}={count}" for role, count in sizes.items() if role != ROLLOUT)
    return f"drover scale {name} --rollout {sizes[ROLLOUT]}{rewards}"


def _facts(measured: Measured, now: Scenario, other: Scenario) -> dict[str, object]:
    def told(of: Scenario) -> dict[str, object]:
        found = {"sizes": dict(of.sizes), "samples_per_s": of.forecast.samples_per_s, "limiting": of.limiting}
        return found | {"decides": dict(of.limits), "busy": dict(of.forecast.busy)}

    return {
        "measured": {
            "samples_per_s": measured.samples_per_s,
            "updates": measured.updates,
            "sizes": dict(measured.sizes),
        },
        "seconds_per_sample": seconds_per_sample(measured),
        "shape": asdict(measured.shape),
        "now": told(now),
        "predicted": told(other),
    }
