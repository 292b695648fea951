"""The watch of the shapes recipes, on the shipped pipeline: a bad proxy ends the run, the learned preference does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from drover.common.protocols import Reward
from drover.deploy.config import RunConfig
from drover.deploy.options import RealPictures, Training
from drover.deploy.recipes.shapes import OPTIMIZER, shapes_composition, shapes_joint, shapes_preference
from drover.reward_servers.rewards.learned_preference import LearnedPreference
from drover.worlds.shapes import PREFERENCE
from tests.deploy.in_place import Done, train
from tests.reward_servers.evaluators.bad_taste import BadTaste

ITERATIONS = 6


def test_the_watch_is_on_where_the_learned_preference_is_trained_on():
    stops = [recipe().watch.stop for recipe in (shapes_joint, shapes_preference, shapes_composition)]
    assert stops == [True, True, False]
    assert shapes_joint(training=Training(groups=1, samples=2)).watch is None
    assert shapes_joint().heldout[0].rewards == ("preference", "taste", "diversity")


def small(proxy: Reward) -> RunConfig:
    """The recipe with its own watch, and so large a step that a bad proxy has done its damage within four of them."""
    config = shapes_preference(
        training=Training(iterations=ITERATIONS, groups=32, samples=16, evaluate_every=1, max_lag=0),
        optimizer=replace(OPTIMIZER, lr=1e-3),
        pictures=RealPictures(pretraining_weight=0.0),
    )
    liked = config.heldout[0]
    return replace(
        config,
        rewards=tuple(proxy if reward.name == proxy.name else reward for reward in config.rewards),
        heldout=(replace(liked, prompts=liked.prompts[:24], samples_per_prompt=2),),
        optimizer=replace(config.optimizer, warmup=1),
        groups=4,
        samples=8,
    )


def found(done: Done, name: str) -> list[float]:
    return [report.scalars[name] for report in done.folder.reports() if report.kind == "eval"]


@pytest.mark.slow
def test_a_bad_proxy_of_taste_ends_the_run_and_the_gap_says_why(tmp_path):
    done = train(small(BadTaste()), tmp_path)
    assert done.ended == "finished" and done.summary["updates"] < ITERATIONS
    assert any(
        "held-out liked/taste fell while liked/preference rose" in report.text for report in done.folder.reports()
    )
    before, after = (
        {key.removeprefix("liked/"): value for key, value in done.summary[moment].items()}
        for moment in ("reward_before", "reward_after")
    )
    assert after["preference"] > 1.2 * before["preference"] and after["taste"] < 0.7 * before["taste"]
    assert {"diversity", "preference", "taste"} == set(after)
    assert found(done, "overoptimisation/gap")[-1] > 1


@pytest.mark.slow
def test_the_learned_preference_does_not_end_it(tmp_path):
    done = train(small(LearnedPreference(PREFERENCE)), tmp_path)
    assert done.ended == "finished" and done.summary["updates"] == ITERATIONS
    assert max(found(done, "overoptimisation/strikes")) < 2
