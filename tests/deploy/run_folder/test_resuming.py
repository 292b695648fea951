"""Killed runs that are resumed, all roles in this process, learn the same bits as undisturbed runs, or are clearly refused."""

import random
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from drover.common.errors import CheckpointError, ConfigError
from drover.common.metrics import NullMeter
from drover.deploy import local
from drover.deploy.config import Pools, RunConfig
from drover.deploy.run_folder.results import RunFolder
from drover.deploy.run_folder.resuming import check_newest, describe
from drover.learner.files.from_files import FromFiles
from drover.learner.intake.evaluation import EvaluationSpec
from drover.learner.intake.tasks import Task
from drover.learner.objectives.ddpo import Ddpo
from drover.learner.objectives.denoising import Denoising
from drover.learner.overoptimisation import Watch
from drover.learner.saving.checkpoint_files import read_state, whole, write_state
from drover.reward_servers.rewards.learned_preference import LearnedPreference
from drover.reward_servers.rewards.toy_point import ToyPoint
from tests.deploy.in_place import Crash, Done, View, small, train
from tests.deploy.test_tasks import UP, Liar, Points, joint


def everything(**fields) -> RunConfig:
    """Two tasks, a pretraining step a round, a moving average, a decaying rate, evaluations that are watched; on-policy."""
    optimizer = replace(joint().optimizer, ema=0.9, warmup=2, decay=40)
    usual = {
        "iterations": 20, "checkpoint_every": 3, "updates": 2, "evaluate_every": 2,
        "files": FromFiles(objective=Denoising(), source=Points((1.0, 1.0)), batch_size=8), "optimizer": optimizer,
        "watch": Watch(truth="points/up", proxy="points/right"),
    }  # fmt: skip
    return joint(**{**usual, **fields})


class Disturbed(View):
    """A view that crashes the run at its ``turn``-th turn, in any state; -1: never."""

    turn = -1

    def stopping(self) -> bool:
        self.turn -= 1
        if self.turn == 0:
            raise Crash
        return False


def evaluations(done: Done) -> dict[float, dict[str, float]]:
    """Held-out means and the watch's numbers, by update, the last report of each."""
    reports = [report for report in done.folder.reports() if report.kind == "eval"]
    return {
        report.scalars["update"]: {
            name: value
            for name, value in report.scalars.items()
            if name.endswith("/mean") or name.startswith("overoptimisation/")
        }
        for report in reports
    }


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moments_and_resumed_it_learns_the_same_bits_and_measures_the_same(tmp_path, seed):
    config = everything(seed=seed)
    whole_run = train(config, tmp_path, name="whole")
    chooser, crashes = random.Random(seed), 0
    for _ in range(8):
        folder, view = RunFolder.create("cut", tmp_path, resume="may"), Disturbed()
        view.turn = chooser.randrange(1, 50)
        try:
            local.train(config, folder, view, NullMeter(), view.stopping)
        except Crash:
            crashes += 1
        folder.release()
    resumed = train(config, tmp_path, name="cut", resume=True)
    assert crashes >= 4 and torch.equal(resumed.weights, whole_run.weights)
    assert evaluations(resumed) == evaluations(whole_run)
    assert resumed.summary["ledger"] == whole_run.summary["ledger"]
    assert resumed.summary["samples"] == whole_run.summary["samples"]


def test_no_draw_comes_from_a_generator_that_a_checkpoint_would_have_to_save(tmp_path):
    class Dice(View):
        def update(self, report):
            super().update(report)
            seed = random.SystemRandom().getrandbits(32)
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)

    config, view = everything(iterations=4), Dice()
    folder = RunFolder.create("diced", tmp_path)
    diced = Done(view, folder, local.train(config, folder, view, NullMeter(), view.stopping))
    assert torch.equal(diced.weights, train(config, tmp_path, name="plain").weights)


def test_the_verdict_of_the_watch_goes_on_where_it_was(tmp_path):
    config = joint(
        rewards=(Liar(), UP), objective=Ddpo(weights={"proxy": 1.0}, clip=0.2, normalise="batch"),
        tasks=(Task(name="proxy", prompts=("anywhere",), rewards=("proxy",)),),
        heldout=(EvaluationSpec(name="h", prompts=("anywhere",), samples_per_prompt=128, rewards=("proxy", "up")),),
        iterations=60, evaluate_every=5, checkpoint_every=1, watch=Watch(truth="h/up", proxy="h/proxy", stop=True),
    )  # fmt: skip
    undisturbed = train(config, tmp_path, name="whole")
    end = undisturbed.summary["updates"]
    assert 10 <= end < 60
    for updates in (end - 6, 2, 2):
        with pytest.raises(Crash):
            train(config, tmp_path, name="cut", resume=updates == 2, crash_after=updates)
    resumed = train(config, tmp_path, name="cut", resume=True)
    assert resumed.summary["updates"] == end
    assert torch.equal(resumed.weights, undisturbed.weights)


def test_an_evaluation_before_the_run_that_was_cut_off_is_made_of_the_weights_it_started_with(tmp_path):
    config = small(iterations=6, checkpoint_every=2)
    undisturbed = train(config, tmp_path, name="whole")
    with pytest.raises(Crash):
        train(config, tmp_path, name="cut", crash_after=3)
    (checkpoint,) = whole(tmp_path / "cut" / "checkpoints")
    write_state(checkpoint, read_state(checkpoint) | {"evaluations": [{"moment": "before", "version": 0, "update": 0}]})
    resumed = train(config, tmp_path, name="cut", resume=True)
    again = [report for report in resumed.view.reports if report.kind == "eval" and report.text == "before"]
    assert len(again) == 1
    assert resumed.summary["reward_before"] == undisturbed.summary["reward_before"]
    assert torch.equal(resumed.weights, undisturbed.weights)


def events(done: Done) -> list[str]:
    return [report.text for report in done.view.reports if report.kind == "event"]


def crashed(tmp_path: Path, config: RunConfig, after: int) -> list[Path]:
    """The names of the run's checkpoints."""
    with pytest.raises(Crash):
        train(config, tmp_path, crash_after=after)
    return whole(tmp_path / "run" / "checkpoints")


def test_a_damaged_newest_checkpoint_is_told_and_the_run_goes_on_from_the_one_before_to_the_same_bits(tmp_path):
    config = small(iterations=6, checkpoint_every=2)
    older, newer = crashed(tmp_path, config, 5)
    (newer / "rank-0.safetensors").write_bytes(b"torn")
    resumed = train(config, tmp_path, resume=True)
    (told,) = events(resumed)
    assert "update-000004 is damaged (rank-0.safetensors" in told and f"going on from {older.name}" in told
    assert [update["update"] for update in resumed.view.updates] == [3, 4, 5, 6]
    assert torch.equal(resumed.weights, train(config, tmp_path, name="whole").weights)


def test_without_an_undamaged_checkpoint_nothing_begins_silently_from_the_start(tmp_path):
    config = small(iterations=6, checkpoint_every=2)
    for checkpoint in crashed(tmp_path, config, 5):
        (checkpoint / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"every checkpoint .* is damaged \(update-000004: .*; update-000002: "):
        train(config, tmp_path, resume=True)


def test_a_run_that_was_killed_before_its_first_checkpoint_says_that_it_begins_again(tmp_path):
    config = small(iterations=3, checkpoint_every=3)
    assert crashed(tmp_path, config, 2) == []
    resumed = train(config, tmp_path, resume=True)
    assert events(resumed) == ["there is no checkpoint to go on from: begins again at update 0"]
    assert resumed.summary["updates"] == 3


def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_the_fix_and_the_one_before_is_gone_on_from(tmp_path):
    config = small(iterations=8, checkpoint_every=2)
    folder = RunFolder.create("run", tmp_path)
    kept = tmp_path / "kept"

    class Full(View):
        def update(self, report):
            super().update(report)
            if report.scalars.get("update") == 3 and report.kind == "update":
                while not (folder.checkpoints / "update-000002" / "state.json").exists():
                    time.sleep(0.01)  # it is written beside training
                folder.checkpoints.rename(kept)
                folder.checkpoints.write_text("no folder any more")

    view = Full()
    with pytest.raises(CheckpointError, match=r"update-000004 cannot be written .*; make it writable"):
        local.train(config, folder, view, NullMeter(), view.stopping)
    assert len(view.updates) < 8
    folder.release()
    folder.checkpoints.unlink()
    kept.rename(folder.checkpoints)
    resumed = train(config, tmp_path, resume=True)
    assert torch.equal(resumed.weights, train(config, tmp_path, name="whole").weights)


# ---------------------------------------------------------------------------------------- changes at a resume


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """The checkpoints of a run that was stopped after 2 of 4 iterations."""
    root = tmp_path_factory.mktemp("stopped")
    return train(small(iterations=4), root, stop_after=2).folder.checkpoints


CHANGES = {
    "seed: was 0, now 1": {"seed": 1},
    "optimizer.lr: was 0.05, now 0.1": {"optimizer": replace(small().optimizer, lr=0.1)},
    r"rewards\[point\].goal: was .*, now \(2.0, 2.0\)": {"rewards": (ToyPoint(goal=(2.0, 2.0)),)},
    "groups: was 2, now 3": {"groups": 3},
    "objective.clip: was 0.2, now 0.5": {"objective": replace(small().objective, clip=0.5)},
    r"tasks\[point\].prompts: was": {"tasks": (replace(small().tasks[0], prompts=("elsewhere",)),)},
    "files: was None, now FromFiles": {
        "files": FromFiles(objective=Denoising(), source=Points((0.0, 0.0)), batch_size=4)
    },
    "has done 2 iterations, which is more than 1": {"iterations": 1},
    "recipe: was 'toy_ddpo', now 'other'": {"recipe": "other"},
}


@pytest.mark.parametrize(("message", "fields"), CHANGES.items(), ids=lambda v: v if isinstance(v, str) else "")
def test_a_run_that_would_learn_something_else_is_refused_by_the_fields_that_differ(stopped, message, fields):
    with pytest.raises(ConfigError, match=message) as refused:
        check_newest(small(**{"iterations": 4, **fields}), stopped)
    assert "\n" not in str(refused.value)


def test_many_differences_are_counted_and_the_learner_refuses_them_too(stopped):
    other = small(iterations=4, seed=5, groups=4, samples=16, updates=2, storage="float16", recipe="other")
    with pytest.raises(ConfigError, match=r"recipe: .*; and \d+ more\. Resume it with .* begin a run of its own"):
        train(other, stopped.parent.parent, resume=True)


def test_the_size_of_the_service_may_change_and_what_may_differ_in_learning_is_told(stopped, tmp_path):
    pools = Pools(actors=7, reward_servers=2, learner_ranks=3)
    check_newest(small(iterations=4, pools=pools, checkpoint_every=9, stall_s=7.0, lease_s=3.0), stopped)
    longer = small(iterations=5, max_lag=1, optimizer=replace(small().optimizer, decay=30))
    shutil.copytree(stopped.parent, tmp_path / "run")
    resumed = train(longer, tmp_path, resume=True)
    assert resumed.summary["updates"] == 5
    assert sorted(events(resumed)) == [
        "goes on with iterations: was 4, now 5",
        "goes on with max_lag: was 0, now 1",
        "goes on with optimizer.decay: was 0, now 30",
    ]


def test_a_reward_counts_by_the_content_of_its_files_and_not_by_where_they_are(tmp_path):
    @dataclass(frozen=True)
    class Filed(ToyPoint):
        checkpoint: Path | str = ""
        packages = ("judge==1",)

    def text(folder: Path) -> str:
        config = small(rewards=(Filed(checkpoint=str(folder)),))
        return describe(config)["rewards[point].checkpoint"].partition("(content")[2]

    for name, content in (("here", "a"), ("moved", "a"), ("refitted", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(content)
    here, moved, refitted = (text(tmp_path / name) for name in ("here", "moved", "refitted"))
    assert here == moved != refitted
    assert describe(small(rewards=(Filed(checkpoint="hub/name"),)))["rewards[point].checkpoint"] == "hub/name"
    assert describe(small(rewards=(Filed(),)))["rewards[point].packages"] == "('judge==1',)"


def test_long_lists_of_prompts_are_told_by_their_number_and_a_hash():
    prompts = tuple(f"prompt {i}" for i in range(1000))
    config = small(tasks=(replace(small().tasks[0], prompts=prompts),))
    told = describe(config)["tasks[point].prompts"]
    assert told.startswith("1000 entries, ") and len(told) < 40
    other = small(tasks=(replace(small().tasks[0], prompts=(*prompts[:-1], "another")),))
    assert describe(other)["tasks[point].prompts"] != told
    assert describe(small(rewards=(LearnedPreference("x/y", name="point"),)))["rewards[point]"] == "LearnedPreference"
