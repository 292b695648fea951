"""`drover scale` writes wanted sizes to the run folder, and the driver follows them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from drover.common.errors import ConfigError
from drover.deploy.cluster import scaling
from drover.deploy.cluster.autoscale import Signal
from drover.deploy.cluster.scaling import Readings, ScaleOptions, Scaling, bounds
from drover.deploy.run_folder.results import RunFolder

CALM = Signal(size=2, alive=2, busy=0.5, backlog=2, age_s=0.1, starved=0.0)
PRESSED = Signal(size=2, alive=2, busy=1.0, backlog=20, age_s=9.0, starved=0.5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def scale(folder: Path, **asked: object) -> int:
    return scaling.run(replace(ScaleOptions("run", runs_dir=folder.parent), **asked))


def driver(folder: Path, **spans: tuple[int, int]) -> Scaling:
    """The driver's `Scaling` after its first look, at two workers of each pool."""
    made = Scaling(folder, spans)
    assert made.wanted({"rollout": CALM, "point": CALM}, 0.0) == {"rollout": 2, "point": 2}
    return made


# ------------------------------------------------------------------------------------------- by people


def test_the_driver_wants_the_requested_sizes_at_its_next_look(folder: Path) -> None:
    made = driver(folder)
    assert scale(folder, rollout=8, reward=("point=4",)) == 0
    assert made.wanted({"rollout": CALM, "point": CALM}, 2.0) == {"rollout": 8, "point": 4}
    assert json.loads((folder / "pools.json").read_text()) == {"sizes": {"rollout": 8, "point": 4}, "bounds": {}}


def test_a_second_wish_leaves_what_the_first_said_of_another_pool(folder: Path) -> None:
    made = driver(folder)
    scale(folder, rollout=8)
    scale(folder, reward=("point=1",))
    assert made.wanted({"rollout": CALM, "point": CALM}, 2.0) == {"rollout": 8, "point": 1}


def test_a_wish_outlives_the_driver(folder: Path) -> None:
    driver(folder)
    scale(folder, rollout=3)
    assert Scaling(folder, {}).wanted({"rollout": CALM}, 0.0) == {"rollout": 3}


def test_without_wish_and_without_bounds_nothing_changes_whatever_the_load(folder: Path) -> None:
    made = driver(folder)
    assert [made.wanted({"rollout": PRESSED}, 2.0 * look) for look in range(100)] == [{"rollout": 2}] * 100


def test_a_run_that_is_over_cannot_be_scaled(folder: Path) -> None:
    driver(folder).close()
    with pytest.raises(ConfigError, match="not running"):
        scale(folder, rollout=3)


def test_whether_the_run_hears_it_now_or_at_its_next_start_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = RunFolder.create("run", tmp_path)
    driver(held.path)
    scale(held.path, rollout=3)
    assert capsys.readouterr().out == "rollout: 2 -> 3 workers\n"
    held.release()  # as a driver that was killed, which leaves its pools.json
    scale(held.path, rollout=1, reward=("point=4",))
    said = "run is not running; from its next start on it has 4 workers in point, 1 worker in rollout\n"
    assert capsys.readouterr().out == said
    scale(held.path, rollout=5, json=True)
    assert json.loads(capsys.readouterr().out)["running"] is False


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"rollout": 0}, "at least one"),
        ({"reward": ("pint=2",)}, "no pool 'pint'; its pools are rollout, point"),
        ({"reward": ("point",)}, "NAME=COUNT"),
        ({"reward": ("point=-1",)}, "NAME=COUNT"),
        ({"reward": ("point=1", "point=2")}, "each name once"),
        ({"evaluation": 1}, "no pool 'evaluation'"),
        ({}, "how many workers"),
        ({"auto": True, "rollout": 2}, "either how many workers"),
        ({"auto": True}, "without --autoscale"),
        ({"run": "rum", "rollout": 2}, "no run 'rum'"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_and_changes_nothing(
    folder: Path, asked: dict[str, object], told: str
) -> None:
    driver(folder)
    with pytest.raises(ConfigError, match=told):
        scale(folder, **asked)
    assert not (folder / "scale.json").exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"sizes": {"rollout": 0}}', '{"sizes": {"rollout": "many"}}', '{"sizes": [1]}', "\xff"]
)
def test_a_wish_that_nobody_can_read_does_not_end_the_run(folder: Path, text: str) -> None:
    made = driver(folder)
    scale(folder, rollout=5)
    made.wanted({"rollout": CALM}, 2.0)
    (folder / "scale.json").write_bytes(text.encode("latin-1"))
    assert made.wanted({"rollout": CALM}, 4.0) == {"rollout": 5}


# --------------------------------------------------------------------------------------------- by load


def test_a_pool_with_bounds_follows_its_load_and_the_others_do_not(folder: Path) -> None:
    made, signals = driver(folder, rollout=(1, 3)), {"rollout": PRESSED, "point": PRESSED}
    sizes = [made.wanted(signals, 2.0 * look) for look in range(1, 20)]
    assert max(size["rollout"] for size in sizes) == 3
    assert {size["point"] for size in sizes} == {2}


def test_a_wish_fixes_a_pool_until_it_is_let_go(folder: Path) -> None:
    made = driver(folder, rollout=(1, 3))
    scale(folder, rollout=1)
    one = replace(PRESSED, size=1, alive=1)
    assert {made.wanted({"rollout": one}, 2.0 * look)["rollout"] for look in range(1, 100)} == {1}
    scale(folder, auto=True)
    assert made.wanted({"rollout": one}, 200.0) == {"rollout": 1}
    assert made.wanted({"rollout": one}, 230.0)["rollout"] > 1


def test_a_pool_outside_its_bounds_is_brought_inside_at_once(folder: Path) -> None:
    assert Scaling(folder, {"rollout": (3, 5)}).wanted({"rollout": CALM}, 0.0) == {"rollout": 3}


def test_bounds_are_read_as_they_are_written() -> None:
    assert bounds(["rollout=1:8", "image_reward=2:2"], ["rollout", "image_reward"]) == {
        "rollout": (1, 8),
        "image_reward": (2, 2),
    }


@pytest.mark.parametrize("text", ["rollout", "rollout=3", "rollout=0:2", "rollout=4:2", "rollout=a:b", "pint=1:2"])
def test_bounds_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--autoscale"):
        bounds([text], ["rollout"])


# --------------------------------------------------------------------------------------------- readings


def test_signals_are_what_accounts_and_queues_say() -> None:
    readings = Readings(lambda: {"rollout": (5, 3.0), "point": (1, 0.5)})
    sizes = {"rollout": 2, "point": 1, "evaluation": 1}

    def look(worked_s: float, waited_s: float) -> dict[str, Signal]:
        actor = {"compute": worked_s, "data": 0.0, "back_pressure": 10.0 - worked_s}
        spent = {
            "rollout": {"actor-0": {"": actor}, "actor-1": {"": actor}},
            "point": {"point-0": {"point": {"compute": worked_s, "other": 1.0}}},
        }
        update = {"account/learner/wait_data": waited_s, "account/learner/compute": 10.0 - waited_s, "loss": 1.0}
        return readings.signals(sizes, spent, update)

    look(0.0, 0.0)
    readings_s = readings.signals(
        sizes,
        {
            "rollout": {
                name: {"": {"compute": 6.0, "data": 2.0, "back_pressure": 12.0}} for name in ("actor-0", "actor-1")
            },
            "point": {"point-0": {"point": {"compute": 1.0, "other": 2.0}}},
        },
        {"account/learner/wait_data": 3.0, "account/learner/compute": 17.0},
    )
    assert readings_s == {
        "rollout": Signal(2, 2, 0.8, 5, 3.0, starved=0.3),
        "point": Signal(1, 1, 0.5, 1, 0.5, starved=None),
        "evaluation": Signal(1, 0, 0.0, 0, 0.0, starved=None),
    }


def test_of_rewards_that_share_processes_the_busiest_counts() -> None:
    readings = Readings(lambda: {"rewards": (9, 3.0)})

    def busy(taste_s: float, other_s: float, of_s: float) -> float:
        seconds = {"taste": taste_s, "other": other_s}
        accounts = {name: {"compute": spent, "wait_data": of_s - spent} for name, spent in seconds.items()}
        return readings.signals({"rewards": 1}, {"rewards": {"rewards-0": accounts}}, {})["rewards"].busy

    busy(0.0, 0.0, of_s=0.0)
    assert busy(9.5, 0.5, of_s=10.0) == pytest.approx(0.95)
