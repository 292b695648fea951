"""Runs of several tasks, with a pretraining step, a moving average and a watch: the toy, in one process."""

import itertools
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from drover.common.errors import DroverError
from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.protocols import FileBatch
from drover.deploy.config import Pools, RunConfig
from drover.learner.files.from_files import FromFiles
from drover.learner.intake.evaluation import EvaluationSpec
from drover.learner.intake.tasks import Task
from drover.learner.objectives.ddpo import Ddpo
from drover.learner.objectives.denoising import Denoising
from drover.learner.objectives.joint import Joint
from drover.learner.overoptimisation import Watch
from drover.reward_servers.rewards.toy_point import ToyPoint
from drover.worlds.plane.policy import ToyChain, read_points
from tests.deploy.in_place import Crash, small, train

RIGHT, UP = ToyPoint(goal=(4.0, 1.0), name="right"), ToyPoint(goal=(1.0, 4.0), name="up")


@dataclass(frozen=True)
class Points:
    """Pictures of points around ``goal``."""

    goal: tuple[float, float]

    def open(self, seed: int) -> "Points":
        return self

    @property
    def skipped(self) -> Mapping[str, int]:
        return {}

    def batch(self, step: int, size: int) -> FileBatch:
        noise = np.random.default_rng([step, size]).normal(0, 0.1, (size, 2))
        return FileBatch(ToyChain().decode(torch.tensor(noise + self.goal), {}), ["anywhere"] * size)


def joint(**fields) -> RunConfig:
    """Two goals in turn; both rewards judge the held-out points, after each task."""
    parts = {name: Ddpo(weights={name: 1.0}, clip=0.2, normalise="batch") for name in ("right", "up")}
    usual = {
        "rewards": (RIGHT, UP),
        "objective": Joint(tasks=parts),
        "tasks": tuple(Task(name=name, prompts=("anywhere",), rewards=(name,)) for name in parts),
        "heldout": (
            EvaluationSpec(
                name="points",
                prompts=("anywhere",),
                samples_per_prompt=64,
                rewards=("right", "up"),
                limits={"up": -2.0},
            ),
        ),
    }
    return small(**{**usual, **fields})


def updates(done) -> list[dict[str, float]]:
    return [report.scalars for report in done.folder.reports() if report.kind == "update"]


def test_tasks_take_turns_and_both_goals_come_nearer(tmp_path):
    done = train(joint(iterations=40), tmp_path)
    measured = [{name for name in ("right", "up") if f"reward/{name}/mean" in each} for each in updates(done)]
    assert measured == [{"right"}, {"up"}] * 20
    before, after = done.summary["reward_before"], done.summary["reward_after"]
    assert after["points/right"] > before["points/right"] and after["points/up"] > before["points/up"]
    assert done.summary["reward_limit"] == {"points/up": -2.0}
    assert done.summary["ledger"]["issued"] == done.summary["ledger"]["trained"] == 80


def test_one_task_alone_is_still_judged_on_both_metrics_and_pays_with_the_other(tmp_path):
    done = train(joint(iterations=40, tasks=joint().tasks[:1]), tmp_path)
    before, after = done.summary["reward_before"], done.summary["reward_after"]
    assert after["points/right"] > before["points/right"] + 1 and after["points/up"] < before["points/up"]


def test_a_pretraining_step_ends_every_round_and_is_logged_with_the_ratio_of_gradients(tmp_path):
    plain = train(joint(), tmp_path, name="plain")
    kept = train(
        joint(files=FromFiles(objective=Denoising(), source=Points((0.0, 0.0)), batch_size=16, weight=100.0)),
        tmp_path,
        name="kept",
    )
    told = ["files/loss" in each for each in updates(kept)]
    assert told == [False, True] * 3
    last = updates(kept)[-1]
    assert last["files/grad_ratio"] == pytest.approx(last["files/grad_norm"] / last["grad_norm"], rel=0.5)
    assert (kept.weights != plain.weights).any()


def test_a_pretraining_loss_in_every_step_is_another_way_and_adds_none(tmp_path):
    pairs = Points((0.0, 0.0))
    runs = {
        combined: train(
            joint(
                files=FromFiles(
                    objective=Denoising(), source=pairs, batch_size=16, when="step" if combined else "round"
                )
            ),
            tmp_path,
            name=f"c{combined}",
        )
        for combined in (False, True)
    }
    assert all("files/loss" in each for each in updates(runs[True]))
    versions = [done.folder.reports()[-1].version for done in runs.values()]
    assert versions[0] == versions[1]
    assert (runs[True].weights != runs[False].weights).any()


def test_stopped_by_a_crash_a_run_of_all_this_goes_on_to_the_same_weights(tmp_path):
    config = joint(
        iterations=8,
        checkpoint_every=3,
        files=FromFiles(objective=Denoising(), source=Points((1.0, 1.0)), batch_size=8),
        optimizer=replace(joint().optimizer, ema=0.9),
    )
    whole = train(config, tmp_path, name="whole")
    with pytest.raises(Crash):
        train(config, tmp_path, name="cut", crash_after=5)
    resumed = train(config, tmp_path, name="cut", resume=True)
    assert (resumed.weights == whole.weights).all()
    assert resumed.summary["reward_after"] == whole.summary["reward_after"]


def test_the_average_is_what_is_evaluated_and_saved(tmp_path):
    last = train(joint(iterations=20), tmp_path, name="last")
    mean = train(joint(iterations=20, optimizer=replace(joint().optimizer, ema=0.999)), tmp_path, name="mean")
    assert 0 < abs(mean.weights).max() < 0.5 * abs(last.weights).max()
    assert mean.summary["reward_after"]["points/right"] < last.summary["reward_after"]["points/right"]


@dataclass(frozen=True)
class Liar:
    """A proxy of ``up`` that truly rewards going down."""

    takes: ClassVar[type[Media]] = Pictures

    name: str = "proxy"
    takes: ClassVar[type[Pictures]] = Pictures

    def load(self, device: str):
        return ToyPoint(goal=(0.0, -8.0)).load(device)


def lied_to(*, stop: bool, **fields) -> RunConfig:
    return joint(
        rewards=(Liar(), UP),
        objective=Ddpo(weights={"proxy": 1.0}, clip=0.2, normalise="batch"),
        tasks=(Task(name="proxy", prompts=("anywhere",), rewards=("proxy",)),),
        heldout=(EvaluationSpec(name="h", prompts=("anywhere",), samples_per_prompt=256, rewards=("proxy", "up")),),
        iterations=60,
        evaluate_every=5,
        watch=Watch(truth="h/up", proxy="h/proxy", stop=stop),
        **fields,
    )


@pytest.mark.parametrize("stop", [True, False])
def test_a_run_ends_when_the_truth_falls_while_its_proxy_rises_if_it_is_told_to(tmp_path, stop):
    done = train(lied_to(stop=stop), tmp_path)
    evaluations = [report.scalars for report in done.folder.reports() if report.kind == "eval"]
    assert max(each["overoptimisation/strikes"] for each in evaluations) >= 2
    assert done.ended == "finished" and (done.summary["updates"] < 60) == stop
    said = [report.text for report in done.folder.reports() if report.kind == "event"]
    assert said == ["ends here: held-out h/up fell while h/proxy rose, at 2 evaluations in a row"] * stop
    assert done.summary["reward_after"]["h/up"] < done.summary["reward_before"]["h/up"]


def test_a_watch_goes_on_with_what_it_saw_before_a_crash(tmp_path):
    config = lied_to(stop=True, checkpoint_every=1)
    whole = train(config, tmp_path, name="whole")
    with pytest.raises(Crash):
        train(config, tmp_path, name="cut", crash_after=whole.summary["updates"] - 2)
    resumed = train(config, tmp_path, name="cut", resume=True)
    assert resumed.summary["updates"] == whole.summary["updates"] < 60
    gaps = [
        [r.scalars["overoptimisation/gap"] for r in done.folder.reports() if r.kind == "eval"][-1]
        for done in (whole, resumed)
    ]
    assert gaps[0] == gaps[1] > 1


def test_a_dear_held_out_set_is_left_to_before_and_after_and_moves_no_noise_of_the_others(tmp_path):
    sets = [
        EvaluationSpec(name=name, prompts=("anywhere",), samples_per_prompt=64, rewards=(name,))
        for name in ("up", "right")
    ]
    dear = [replace(sets[0], during=False), sets[1]]
    runs = (
        train(joint(heldout=tuple(held), evaluate_every=2), tmp_path, name=name)
        for name, held in (("dear", dear), ("cheap", sets))
    )
    found = [{r.scalars["update"]: r.scalars for r in done.folder.reports() if r.kind == "eval"} for done in runs]
    assert ["heldout/up/up/mean" in each for each in found[0].values()] == [True, False, False, True]
    assert all("heldout/up/up/mean" in each for each in found[1].values())
    assert all(
        one["heldout/right/right/mean"] == found[1][at]["heldout/right/right/mean"] for at, one in found[0].items()
    )


@dataclass(frozen=True)
class Stuck:
    """`ToyPoint` whose second call never returns."""

    takes: ClassVar[type[Media]] = Pictures
    name: str = "point"

    def load(self, device: str):
        honest, calls = ToyPoint().load(device), itertools.count(1)

        def score(prompts, media: Pictures):
            if next(calls) == 2:
                threading.Event().wait()
            return honest(prompts, media)

        return score


def test_a_reward_that_hangs_costs_its_deadline_and_one_groups_samples(tmp_path):
    pools = Pools(reward_batch=32, reward_deadline_s=2.0)
    done = train(small(rewards=(Stuck(),), pools=pools), tmp_path)
    assert done.ended == "finished"
    assert (done.summary["ledger"]["trained"], done.summary["ledger"]["empty"]) == (11, 1)
    assert [each["reward/point/valid_share"] for each in updates(done)] == [0.5, 1, 1, 1, 1, 1]


def test_read_points_is_what_the_pairs_of_this_file_are_drawn_with():
    media = Points((2.0, -1.0)).batch(0, 200).media
    assert abs(read_points(media).mean(0) - (2.0, -1.0)).max() < 0.05


@dataclass(frozen=True)
class Silent:
    name: str
    takes: ClassVar[type[Media]] = Pictures

    def load(self, device: str):
        def score(prompts, media):
            raise RuntimeError("no connection to the judge")

        return score


@pytest.mark.parametrize(
    ("iterations", "when"), [(2, "in the whole run"), (20, "for 3 iterations")], ids=["short", "long"]
)
def test_a_task_of_which_no_sample_ever_had_a_valid_reward_ends_the_run_though_the_other_learns(
    tmp_path, iterations, when
):
    config = replace(joint(iterations=iterations), rewards=(RIGHT, Silent("up")))
    with pytest.raises(
        DroverError, match=rf"no sample of the task 'up' had a valid reward {when}; masked so far: up: \d+ x"
    ):
        train(config, tmp_path)


def test_a_run_knows_after_a_resume_which_tasks_have_had_a_valid_reward(tmp_path):
    config = replace(joint(iterations=4, checkpoint_every=1), rewards=(RIGHT, Silent("up")))
    train(config, tmp_path, stop_after=2)
    with pytest.raises(DroverError, match="no sample of the task 'up' had a valid reward in the whole run"):
        train(config, tmp_path, resume=True)
