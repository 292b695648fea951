"""Whole runs of the toy, all roles in this process."""

import json
import math
from dataclasses import replace

import pytest
import torch

from drover.actors.sampler import Plain
from drover.common.diffusion.kernels.renoise import Ddim
from drover.common.errors import ConfigError, DroverError
from drover.common.protocols import Scores
from drover.common.weights.memory import MemoryWeights
from drover.deploy import local, roles
from drover.deploy.recipes.toy_ddpo import toy_ddpo
from drover.learner.intake.slots import Slots
from drover.reward_servers.rewards.toy_point import ToyPoint
from drover.worlds.plane.model import toy_kernel
from tests.deploy.in_place import Crash, Fickle, small, train

ENDINGS = ("trained", "empty", "failed", "stale")


@pytest.mark.slow
def test_the_toy_learns_from_below_minus_5_to_above_minus_2_15_in_60_iterations(tmp_path):
    done = train(replace(toy_ddpo(), iterations=60), tmp_path)
    assert done.ended == "finished"
    assert done.summary["reward_before"]["anywhere/point"] < -5
    assert done.summary["reward_after"]["anywhere/point"] > -2.15
    assert done.summary["max_lag_seen"] <= 1
    assert done.summary["ledger"] == {
        "issued": 240, "in_flight": 0, "trained": 240, "empty": 0, "failed": 0, "stale": 0,
    }  # fmt: skip


@pytest.mark.slow
def test_with_the_sign_of_the_reward_turned_it_gets_worse(tmp_path):
    config = replace(toy_ddpo(), iterations=20)
    done = train(replace(config, objective=replace(config.objective, weights={"point": -1.0})), tmp_path)
    assert done.summary["reward_after"]["anywhere/point"] < done.summary["reward_before"]["anywhere/point"] - 5


def test_without_lag_every_first_step_is_on_policy(tmp_path):
    done = train(small(iterations=10, updates=2), tmp_path)
    assert len(done.view.updates) == 10
    for update in done.view.updates:
        assert update["ratio_first"] == pytest.approx(1, abs=1e-5)
        assert update["clip_fraction_first"] == 0
        assert update["lag_max"] == 0
    assert any(abs(update["ratio"] - 1) > 1e-5 for update in done.view.updates)  # the second step is not


@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_every_choice_of_dtypes_learns(tmp_path, storage, weights):
    done = train(small(iterations=12, storage=storage, weights=weights, max_lag=1), tmp_path)
    assert done.summary["reward_after"]["anywhere/point"] > done.summary["reward_before"]["anywhere/point"] + 1
    if weights == "float32":
        assert done.view.updates[0]["ratio_first"] == pytest.approx(1, abs=1e-5)


def test_a_run_that_is_interrupted_and_resumed_ends_as_one_that_is_not_bit_for_bit(tmp_path):
    config = small(iterations=8, checkpoint_every=3)
    whole = train(config, tmp_path, name="whole")
    first = train(config, tmp_path, name="halves", stop_after=4)
    assert first.ended == "stopped" and first.summary["updates"] == 4
    assert not (first.folder.path / "toy.safetensors").exists()
    second = train(config, tmp_path, name="halves", resume=True)
    assert second.ended == "finished"
    assert torch.equal(second.weights, whole.weights)
    assert second.summary["reward_after"] == whole.summary["reward_after"]
    assert [update["update"] for update in second.view.updates] == [5, 6, 7, 8]
    assert second.summary["samples"] == whole.summary["samples"] == 8 * 2 * 32
    assert second.summary["ledger"] == whole.summary["ledger"]
    assert second.summary["reward_before"] == whole.summary["reward_before"]


def test_a_run_that_crashes_between_checkpoints_ends_as_one_that_does_not_bit_for_bit(tmp_path):
    config = small(iterations=8, checkpoint_every=3)
    whole = train(config, tmp_path, name="whole")
    with pytest.raises(Crash):
        train(config, tmp_path, name="crashed", crash_after=5)
    second = train(config, tmp_path, name="crashed", resume=True)
    assert [update["update"] for update in second.view.updates] == [4, 5, 6, 7, 8]
    assert torch.equal(second.weights, whole.weights)
    assert second.summary["ledger"] == whole.summary["ledger"]
    assert second.summary["samples"] == whole.summary["samples"]


def test_a_slot_is_given_back_only_when_the_weights_it_led_to_are_visible(tmp_path, monkeypatch):
    published, at_release = [], []

    class WatchedWeights(MemoryWeights):
        def publish(self, version, tensors, canary):
            super().publish(version, tensors, canary)
            published.append(version)

    class WatchedSlots(Slots):
        def release(self, count=1):
            super().release(count)
            at_release.append(published[-1])

    monkeypatch.setattr(local, "MemoryWeights", WatchedWeights)
    monkeypatch.setattr(roles, "Slots", WatchedSlots)
    train(small(iterations=4), tmp_path)
    assert published == [0, 1, 2, 3, 4]
    assert at_release == [1, 2, 3, 4]


def test_equal_seeds_give_equal_bits_and_others_do_not(tmp_path):
    one, same, other = (
        train(small(iterations=3, seed=seed), tmp_path, name=str(i)).weights for i, seed in enumerate((1, 1, 2))
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_finished_run_that_is_resumed_stays_as_it_is(tmp_path):
    done = train(small(iterations=3), tmp_path)
    again = train(small(iterations=3), tmp_path, resume=True)
    assert again.ended == "finished" and torch.equal(again.weights, done.weights)
    assert again.summary["updates"] == 3


def test_the_ledger_balances_in_every_report(tmp_path):
    done = train(small(max_lag=2), tmp_path)
    seen = 0
    for report in done.view.reports:
        account = {key[7:]: value for key, value in report.scalars.items() if key.startswith("ledger/")}
        if account:
            seen += 1
            assert account["issued"] == account["in_flight"] + sum(account[ending] for ending in ENDINGS)
            assert account["in_flight"] <= 3 * 2
    assert seen >= 8


def test_a_run_leaves_a_summary_that_says_what_it_took_and_what_came_of_it(tmp_path):
    done = train(small(), tmp_path)
    done.conclude()
    written = json.loads(done.folder.summary.read_text())
    assert {"reward_before", "reward_after", "updates", "samples", "wall_s", "max_lag_seen", "ledger"} <= written.keys()
    assert written["updates"] == 6 and written["samples"] == 6 * 2 * 32
    assert written["wall_s"] > written["first_update_s"] > 0
    assert math.isfinite(written["reward_before"]["anywhere/point"]) and written["ended"] == "finished"
    assert {"metrics.jsonl", "curves.png", "samples.png", "checkpoints", "toy.safetensors"} <= {
        path.name for path in done.folder.path.iterdir()
    }


def test_samples_without_a_value_are_left_out_and_counted(tmp_path):
    done = train(small(iterations=12, rewards=(Fickle(nan_every=4),)), tmp_path)
    assert done.ended == "finished"
    assert {update["reward/point/valid_share"] for update in done.view.updates} == {0.75}
    assert done.summary["reward_after"]["anywhere/point"] > done.summary["reward_before"]["anywhere/point"] + 1
    assert all(math.isfinite(update["loss"]) for update in done.view.updates)


@pytest.mark.parametrize(
    ("reward", "reason"),
    [
        (Fickle(nan_every=1), r"point: 256 x nan"),
        (Fickle(raises=True), r"point: 256 x error.*no connection to the judge"),
    ],
)
def test_a_reward_that_never_gives_a_value_ends_the_run_with_one_clear_error(tmp_path, reward, reason):
    with pytest.raises(
        DroverError,
        match=f"no sample of the task 'point' had a valid reward for 3 iterations; masked so far: .*{reason}",
    ):
        train(small(iterations=50, rewards=(reward,)), tmp_path)


def test_a_reward_that_is_the_same_for_all_changes_no_weight_and_ends_every_group_empty(tmp_path):
    class Flat(ToyPoint):
        def load(self, device):
            return lambda prompts, media: Scores([3.0] * len(prompts))

    done = train(small(rewards=(Flat(),)), tmp_path)
    assert done.ended == "finished" and (done.weights == 0).all()
    assert done.summary["ledger"]["empty"] == 12 and done.summary["ledger"]["trained"] == 0


def test_two_rewards_are_weighed_by_name(tmp_path):
    goals = (ToyPoint(name="near"), ToyPoint(goal=(4.0, 4.0), name="far"))
    results = {}
    for near, far in ((1.0, 0.0), (0.0, 1.0)):
        objective = replace(small().objective, weights={"near": near, "far": far})
        asked = {"tasks": (replace(small().tasks[0], rewards=("near", "far")),)}
        asked["heldout"] = (replace(small().heldout[0], rewards=("near", "far")),)
        done = train(
            small(iterations=20, rewards=goals, objective=objective, **asked), tmp_path, name=f"near-{near:.0f}"
        )
        results[near] = done.summary["reward_after"]
    assert results[1.0]["anywhere/near"] > results[0.0]["anywhere/near"] + 1
    assert results[0.0]["anywhere/far"] > results[1.0]["anywhere/far"] + 1


def test_a_held_out_set_is_judged_by_samples_of_its_own_sampler(tmp_path):
    """In the plane a deterministic step leaves every point where it is, so that set's rewards do not change with training."""
    (usual,) = small().heldout
    still = replace(usual, name="still", sampler=Plain(replace(toy_kernel(), rule=Ddim(eta=0.0))))
    done = train(small(iterations=6, heldout=(usual, still)), tmp_path)
    before, after = done.summary["reward_before"], done.summary["reward_after"]
    assert after["anywhere/point"] > before["anywhere/point"] + 0.5
    assert after["still/point"] == pytest.approx(before["still/point"], abs=1e-3)


def test_only_two_checkpoints_stay(tmp_path):
    done = train(small(iterations=5, checkpoint_every=1), tmp_path)
    assert sorted(p.name for p in done.folder.checkpoints.iterdir()) == ["update-000004", "update-000005"]


def test_a_started_run_is_not_overwritten_and_an_unknown_one_not_resumed(tmp_path):
    train(small(iterations=1), tmp_path)
    with pytest.raises(ConfigError, match="pass --resume run to go on"):
        train(small(iterations=1), tmp_path)
    with pytest.raises(ConfigError, match="no run to resume"):
        train(small(iterations=1), tmp_path, name="unknown", resume=True)
