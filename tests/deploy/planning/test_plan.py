"""Forecasts against numbers worked out by hand, and plans from the reports of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drover.common.errors import ConfigError
from drover.common.types import Report
from drover.deploy.planning import plan
from drover.deploy.planning.forecast import Costs, Shape, forecast, limits, propose
from drover.deploy.planning.plan import PlanOptions
from drover.deploy.run_folder.results import RunFolder

SHAPE = Shape(groups=4, samples=10, max_lag=1, rewards=(("point",),))
COSTS = Costs(rollout_s=0.2, load_s=0.0, rewards_s={"point": 0.1}, learner_s=0.3)


def pace(shape: Shape, costs: Costs, actors: int, servers: int) -> float:
    return forecast(shape, costs, {"rollout": actors, "point": servers}).samples_per_s


# ------------------------------------------------------------------------------------------- forecasts


def test_without_lag_the_roles_take_turns_and_their_times_add_up() -> None:
    """Four groups one after the other, the last one's score, the update: 0.8 + 0.1 + 0.3 s for 40 samples."""
    assert pace(replace(SHAPE, max_lag=0), COSTS, 1, 1) == pytest.approx(40 / 1.2)
    # Two actors, two servers: 0.4 + 0.1 + 0.3.
    assert pace(replace(SHAPE, max_lag=0), COSTS, 2, 2) == pytest.approx(40 / 0.8)
    # Three actors need two turns for four groups, just as two do.
    assert pace(replace(SHAPE, max_lag=0), COSTS, 3, 2) == pytest.approx(40 / 0.8)


def test_with_enough_lag_only_the_slowest_role_counts() -> None:
    """Of the three, 0.2 x 4 / actors, 0.1 x 4 / servers and 0.3 s for an iteration, the longest."""
    deep = replace(SHAPE, max_lag=4)
    assert pace(deep, COSTS, 1, 1) == pytest.approx(40 / 0.8, rel=0.02)
    assert pace(deep, COSTS, 2, 1) == pytest.approx(40 / 0.4, rel=0.02)
    assert pace(deep, COSTS, 4, 1) == pytest.approx(40 / 0.4, rel=0.02)
    assert pace(deep, COSTS, 4, 2) == pytest.approx(40 / 0.3, rel=0.02)


def test_new_weights_cost_each_actor_once_an_iteration() -> None:
    loading = replace(COSTS, load_s=0.5)
    assert pace(replace(SHAPE, max_lag=0), loading, 1, 1) == pytest.approx(40 / 1.7)
    assert pace(replace(SHAPE, max_lag=0), loading, 2, 2) == pytest.approx(40 / 1.3)


def test_groups_that_share_a_scoring_call_end_together() -> None:
    """All four are sampled at once by four actors; alone on its server each takes 0.1 s, in one call all take 0.4 s."""
    shape = replace(SHAPE, max_lag=0)
    assert pace(shape, COSTS, 4, 4) == pytest.approx(40 / 0.6)
    assert pace(replace(shape, actor_groups=4), COSTS, 1, 1) == pytest.approx(40 / (0.8 + 0.4 + 0.3))


def test_tasks_with_different_rewards_take_turns() -> None:
    """Every other iteration is scored by the slow one: 0.8 + 0.1 + 0.3 s and 0.8 + 1.0 + 0.3 s in turn."""
    shape = replace(SHAPE, max_lag=0, groups=1, rewards=(("quick",), ("slow",)))
    costs = replace(COSTS, rollout_s=0.8, rewards_s={"quick": 0.1, "slow": 1.0})
    found = forecast(shape, costs, {"rollout": 1, "quick": 1, "slow": 1})
    assert found.samples_per_s == pytest.approx(2 * 10 / 3.3)


def test_the_limiting_role_is_the_one_that_decides_the_pace() -> None:
    deep = replace(SHAPE, max_lag=4)
    assert limits(deep, COSTS, {"rollout": 1, "point": 1}) == pytest.approx(
        {"rollout": 1, "point": 0, "learner": 0}, abs=0.1
    )
    assert limits(deep, COSTS, {"rollout": 4, "point": 1})["point"] > 0.9
    assert limits(deep, COSTS, {"rollout": 8, "point": 4})["learner"] > 0.9
    turns = limits(replace(SHAPE, max_lag=0), COSTS, {"rollout": 1, "point": 1})
    assert turns == pytest.approx({"rollout": 0.8 / 1.2, "point": 0.1 / 1.2, "learner": 0.3 / 1.2}, abs=0.02)


def test_a_split_gives_each_role_what_its_work_is_worth() -> None:
    """Sampling costs three times as much as scoring, and the learner next to nothing."""
    shape, costs = replace(SHAPE, max_lag=4, groups=16), replace(COSTS, rollout_s=0.3, learner_s=0.01)
    assert propose(shape, costs, 8) == {"rollout": 6, "point": 2}
    assert propose(shape, costs, 2) == {"rollout": 1, "point": 1}


def test_a_split_asks_for_no_worker_that_would_not_help() -> None:
    """The learner's 0.3 s allow 133 samples/s; three actors and two servers are enough for that, with any larger budget."""
    assert propose(replace(SHAPE, max_lag=4), COSTS, 20) == {"rollout": 3, "point": 2}


@settings(max_examples=60, deadline=None)
@given(
    groups=st.integers(1, 6),
    lag=st.integers(0, 3),
    actors=st.integers(1, 5),
    servers=st.integers(1, 4),
    times=st.tuples(*[st.floats(0.01, 1.0)] * 3),
)
def test_a_forecast_lies_between_taking_turns_and_the_slowest_role_alone(
    groups: int, lag: int, actors: int, servers: int, times: tuple[float, float, float]
) -> None:
    rollout_s, reward_s, learner_s = times
    shape = replace(SHAPE, groups=groups, max_lag=lag)
    costs = Costs(rollout_s=rollout_s, load_s=0.0, rewards_s={"point": reward_s}, learner_s=learner_s)
    turns_s = groups * (rollout_s + reward_s) + learner_s
    slowest_s = max(groups * rollout_s / actors, groups * reward_s / servers, learner_s)
    found = forecast(shape, costs, {"rollout": actors, "point": servers})
    assert groups * 10 / turns_s * 0.999 <= found.samples_per_s <= groups * 10 / slowest_s * (1 + 2 * (lag + 1) / 60)
    assert all(0 <= share <= 1 for share in found.busy.values())


# ------------------------------------------------------------------------------------------------- plans


def reports(
    updates: int, *, actors: int = 1, servers: int = 1, update_s: float = 0.8, first: int = 1, start_s: float = 30.0
) -> Iterator[Report]:
    """A run of `SHAPE` and `COSTS`: an actor samples a group in 0.2 s, and spends a tenth more on data."""
    for number in range(first, first + updates):
        done = number * 4
        yield Report(
            kind="update",
            at_s=start_s + (number - first) * update_s,
            version=number,
            text="",
            scalars={
                "update": number,
                "updates_total": 1000,
                "samples": number * 40,
                "max_lag": 1,
                "cost/rollout/s_per_sample": 0.02,
                "cost/reward/point/s_per_sample": 0.01,
                "ledger/trained": done - 1,
                "ledger/empty": 1,
                "account/learner/compute": number * 0.2,
                "account/learner/weights": number * 0.05,
                "account/learner/other": 20 + number * 0.05,
                "account/learner/wait_data": number * 0.5,
                "account/actor/compute": done * 0.2,
                "account/actor/data": done * 0.02,
                "account/actor/weights": 3 + number * 0.01 * actors,
                "pool/rollout": actors,
                "pool/reward/point": servers,
            },
        )


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create("run", tmp_path)


def write(folder: RunFolder, *some: Iterator[Report]) -> None:
    for each in some:
        for report in each:
            folder.append(report)


def planned(folder: RunFolder, capsys: pytest.CaptureFixture[str], **asked: object) -> dict[str, object]:
    options = replace(PlanOptions("run", runs_dir=folder.path.parent, json=True), **asked)
    assert plan.run(options) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_costs_are_read_from_the_reports_of_a_run(folder: RunFolder) -> None:
    write(folder, reports(20))
    measured = plan.measure(folder.reports(), "run")
    assert measured.shape == replace(SHAPE, rewards=(("point",),) * measured.updates)
    assert measured.sizes == {"rollout": 1, "point": 1}
    assert measured.samples_per_s == pytest.approx(50.0)
    assert measured.costs.rollout_s == pytest.approx(0.22)
    assert measured.costs.load_s == pytest.approx(0.01)
    assert measured.costs.rewards_s == pytest.approx({"point": 0.1})
    assert measured.costs.learner_s == pytest.approx(0.3)


def test_only_the_newest_stretch_of_equal_pools_counts(folder: RunFolder) -> None:
    write(folder, reports(20), reports(20, first=21, actors=4, update_s=0.2, start_s=60.0))
    measured = plan.measure(folder.reports(), "run")
    assert measured.sizes == {"rollout": 4, "point": 1}
    assert measured.updates < 20
    assert measured.samples_per_s == pytest.approx(200.0)


def test_updates_before_a_restart_of_the_learner_do_not_count(folder: RunFolder) -> None:
    """The learner's account begins at 0 again, so that a difference of seconds across the restart would be negative."""
    reborn = [
        replace(r, scalars={**r.scalars, "account/learner/other": r.scalars["update"] * 0.05 - 25}) for r in reports(12)
    ]
    write(folder, reports(20), (replace(r, scalars={**r.scalars, "update": r.scalars["update"] + 20}) for r in reborn))
    measured = plan.measure(folder.reports(), "run")
    assert measured.updates < 12
    assert measured.costs.learner_s == pytest.approx(0.3)


def test_the_last_updates_for_which_nothing_new_was_ordered_do_not_count(folder: RunFolder) -> None:
    write(folder, reports(20, first=981))
    assert plan.measure(folder.reports(), "run").updates == 20 - 2 - 4 - 1


def test_a_plan_says_what_limits_and_what_another_size_would_do(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, reports(20))
    found = planned(folder, capsys, rollout=2)
    assert found["now"]["limiting"] == "rollout"
    assert found["now"]["samples_per_s"] == pytest.approx(40 / 0.89, rel=0.02)
    assert found["predicted"]["sizes"] == {"rollout": 2, "point": 1}
    assert found["predicted"]["samples_per_s"] == pytest.approx(40 / 0.45, rel=0.06)
    assert found["seconds_per_sample"] == pytest.approx({"rollout": 0.02225, "point": 0.01, "learner": 0.0075})


def test_a_budget_is_split_for_the_most_samples(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, reports(20))
    sizes = planned(folder, capsys, budget=4)["predicted"]["sizes"]
    assert sizes == {"rollout": 3, "point": 1} or sizes == {"rollout": 2, "point": 2}


def test_the_table_names_the_command_that_follows_the_proposal(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, reports(20))
    assert plan.run(PlanOptions("run", runs_dir=folder.path.parent, budget=6)) == 0
    out = capsys.readouterr().out
    assert "rollout limits it" in out
    assert "drover scale run --rollout" in out


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"run": "rum"}, "no run 'rum'"),
        ({"reward": ("pint=2",)}, "no pool 'pint'; its pools are rollout, point"),
        ({"rollout": 0}, "at least one"),
        ({"rollout": 2, "budget": 4}, "either --budget"),
        ({"budget": 1}, "too few"),
    ],
)
def test_a_plan_for_what_cannot_be_is_refused(folder: RunFolder, asked: dict[str, object], told: str) -> None:
    write(folder, reports(20))
    with pytest.raises(ConfigError, match=told):
        plan.run(replace(PlanOptions("run", runs_dir=folder.path.parent), **asked))


def test_a_run_of_few_updates_says_that_it_needs_more(folder: RunFolder) -> None:
    write(folder, reports(3))
    with pytest.raises(ConfigError, match="5 updates in a row"):
        plan.run(PlanOptions("run", runs_dir=folder.path.parent))
