"""How much held-out rewards rose: means with their errors, paired by prompt and noise."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from drover.common.types import Judged
from drover.deploy.run_folder.gains import Gain, Mean, gains, keep
from drover.deploy.run_folder.summary import conclude
from drover.deploy.views.last_words import last_words
from tests.deploy.in_place import small, train

NAN = math.nan


def kept(folder: Path, before: list[Judged], after: list[Judged]) -> dict[str, Gain]:
    keep(folder, "before", before)
    keep(folder, "after", after)
    return gains(folder)


def test_the_rise_of_the_same_samples_is_surer_than_the_means_it_is_made_of(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(5, 2, (16, 4))
    after = before + rng.normal(0.5, 0.1, before.shape)
    orders = [
        [Judged("set/taste", draw, 4, tuple(values[4 * draw : 4 * draw + 4].ravel())) for draw in order]
        for values, order in ((before, (0, 1, 2, 3)), (after, (3, 1, 0, 2)))
    ]
    gain = kept(tmp_path, *orders)["set/taste"]
    assert gain.before.mean == pytest.approx(before.mean())
    assert gain.before.error == pytest.approx(before.std(ddof=1) / 8)
    assert gain.rise.mean == pytest.approx((after - before).mean())
    assert gain.rise.error == pytest.approx((after - before).std(ddof=1) / 8)
    assert gain.rise.error < gain.before.error / 10
    assert gain.rise.count == 64


def test_samples_without_a_value_at_one_moment_and_orders_of_one_moment_are_left_out_of_the_rise(
    tmp_path: Path,
) -> None:
    before = [Judged("s/r", 0, 2, (1.0, NAN, 3.0, 4.0)), Judged("s/r", 1, 2, (9.0, 9.0))]
    after = [Judged("s/r", 0, 2, (2.0, 5.0, NAN, 6.0)), Judged("s/gone", 0, 1, (NAN,))]
    found = kept(tmp_path, before, after)
    assert found["s/r"].rise == Mean(1.5, error=pytest.approx(0.5), std=0.5, count=2)
    assert found["s/r"].before.count == 3
    assert set(found) == {"s/r"}


def test_a_value_that_all_samples_of_a_prompt_share_is_one_observation(tmp_path: Path) -> None:
    before = [Judged("s/parity", draw, 50, (0.1 * draw,) * 50) for draw in range(3)]
    after = [Judged("s/parity", draw, 50, (0.1 * draw + 0.01,) * 50) for draw in range(3)]
    gain = kept(tmp_path, before, after)["s/parity"]
    assert gain.before.count == gain.rise.count == 3
    assert gain.before.error == pytest.approx(0.1 / math.sqrt(3))
    one = kept(tmp_path, before[:1], after[:1])["s/parity"]
    assert one.rise == Mean(pytest.approx(0.01), error=None, std=0.0, count=1)


def test_without_the_values_of_both_moments_there_is_nothing_to_compare(tmp_path: Path) -> None:
    assert gains(tmp_path) == {}
    keep(tmp_path, "before", [Judged("s/r", 0, 1, (1.0,))])
    assert gains(tmp_path) == {}


def words(**changes: object) -> str:
    mean = {"mean": 0.0042, "error": 0.0021, "std": 0.01, "count": 8}
    gain = {
        "before": mean,
        "after": mean | {"mean": 0.0054, "error": None},
        "rise": mean | {"mean": 0.005, "error": 0.0014},
    }
    summary = {
        "reward_before": {"s/r": 0.0042},
        "reward_after": {"s/r": 0.0054},
        "reward_limit": {},
        "heldout": {"s/r": gain},
    }
    rest = {"updates": 3, "samples": 24, "command_s": 7.4, "max_lag_seen": 1, "ended": "finished", "run": "j1"}
    line, *_ = last_words(summary | rest | changes, Path("/nowhere"))
    return line


def test_the_last_words_say_how_sure_a_rise_is() -> None:
    told = "held-out s/r: 0.0042 ± 0.0021 before, 0.0054 after: +0.005 ± 0.0014 (8 samples, the same prompts and noise)"
    assert words() == told
    unsure = {"s/r": {"before": MEAN, "after": MEAN, "rise": MEAN | {"mean": -0.002, "error": 0.0014}}}
    assert words(heldout=unsure).endswith(
        "-0.002 ± 0.0014 (8 samples, the same prompts and noise; too few samples to tell)"
    )
    assert words(heldout={}) == "held-out s/r: 0.0042 before, 0.0054 after: +0.0012"
    assert words(heldout={}, reward_before={}) == "held-out s/r: 0.0054 after"
    assert words(reward_limit={"s/r": 0.00712}) == f"{told}; best possible with so few samples: 0.00712"


MEAN = {"mean": 1.0, "error": 0.25, "std": 1.0, "count": 8}


def test_a_run_that_was_resumed_compares_with_its_start_in_the_former_life(tmp_path: Path) -> None:
    train(small(iterations=4), tmp_path, stop_after=2)
    resumed = train(small(iterations=4), tmp_path, resume=True)
    found = conclude(resumed.folder, {})["heldout"]["anywhere/point"]  # type: ignore[index]
    summary = resumed.summary
    assert found["before"]["mean"] == pytest.approx(summary["reward_before"]["anywhere/point"])
    assert found["after"]["mean"] == pytest.approx(summary["reward_after"]["anywhere/point"])
    assert found["rise"]["count"] == 64
    assert 0 < found["rise"]["error"] < found["after"]["error"]
