"""Two learner processes on gloo learn the same as one. They are started once, and each test checks one result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from drover.learner.saving.checkpoint import Checkpoints
from drover.learner.step import StepStats
from tests.learner.gloo import alone, run_ranks
from tests.learner.training import Rank

pytestmark = pytest.mark.slow
Weights = dict[str, torch.Tensor]
MODELS = ("toy", "lora")


@dataclass
class One:
    """The weights of a single rank at the start, after one iteration and after two, and the statistics of the first."""

    before: Weights
    weights: Weights
    continued: Weights
    stats: list[StepStats]


@dataclass
class Both:
    folder: Path
    pipeline: Path
    one: dict[str, One]
    answers: list[dict[str, Any]]

    def two(self, model: str, rank: int = 0) -> dict[str, Weights]:
        found: dict[str, Weights] = torch.load(self.folder / f"{model}-{rank}.pt", weights_only=True)
        return found


@pytest.fixture(scope="module")
def both(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("ranks")
    with alone():
        one = {model: learn_alone(model, tiny_folder, folder) for model in MODELS}
    return Both(folder, tiny_folder, one, run_ranks(2, tiny_folder, folder))


def learn_alone(model: str, pipeline: Path, folder: Path) -> One:
    learner = Rank(model, pipeline)
    before = learner.weights()
    stats = learner.learn()
    weights = learner.weights()
    checkpoints = Checkpoints(folder / "one" / model)
    checkpoints.save(5, learner.module, learner.stepper.optimizer, {"note": "kept"})
    checkpoints.finish()
    learner.learn()
    return One(before, weights, learner.weights(), stats)


def off(got: Weights, wanted: Weights, before: Weights) -> float:
    """Distance between the weights and those wanted, relative to the distance that training moved them."""
    missed = sum((got[name] - wanted[name]).square().sum() for name in wanted)
    moved = sum((wanted[name] - before[name]).square().sum() for name in wanted)
    return float((missed / moved).sqrt())


# AdamW divides each gradient by its own size, which magnifies the rounding of the smallest ones of a UNet.
@pytest.mark.parametrize(("model", "tolerance"), [("toy", 1e-6), ("lora", 1e-4)])
def test_they_learn_what_one_learns(both, model, tolerance):
    one = both.one[model]
    assert off(both.two(model)["weights"], one.weights, one.before) < tolerance
    for mine, (loss, norm, ratio) in zip(one.stats, both.answers[0][model]["stats"], strict=True):
        assert norm == pytest.approx(mine.grad_norm, rel=1e-5)
        assert loss == pytest.approx(mine.loss, rel=1e-4, abs=1e-6)
        assert ratio == pytest.approx(mine.watched["ratio"], abs=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_they_hold_the_same_weights_and_tell_the_same_numbers(both, model):
    first, second = both.two(model, 0)["weights"], both.two(model, 1)["weights"]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert both.answers[0][model]["stats"] == both.answers[1][model]["stats"]
    assert any(not torch.equal(first[name], both.one[model].before[name]) for name in first)


@pytest.mark.parametrize("model", MODELS)
def test_one_reads_what_two_have_written(both, model):
    checkpoints = Checkpoints(both.folder / "two" / model)
    with alone():
        folder = checkpoints.choose().folder
        assert sorted(p.name for p in folder.glob("rank-*")) == ["rank-0.safetensors", "rank-1.safetensors"]
        reader = Rank(model, both.pipeline)
        assert checkpoints.load(folder, reader.module, reader.stepper.optimizer)["note"] == "kept"
        two = both.two(model)["weights"]
        assert all(torch.equal(weight, two[name]) for name, weight in reader.weights().items())
        reader.learn()
        assert off(reader.weights(), both.one[model].continued, both.one[model].weights) < 1e-3


@pytest.mark.parametrize(("model", "tolerance"), [("toy", 1e-6), ("lora", 1e-4)])
def test_two_read_what_one_has_written_and_go_on_as_it_does(both, model, tolerance):
    one = both.one[model]
    assert {answer[model]["note"] for answer in both.answers} == {"kept"}
    assert off(both.two(model)["continued"], one.continued, one.weights) < tolerance


def test_all_know_what_rank_0_gathered_and_sums_are_over_all(both):
    credit = [[[[0, 0]], [[0, 1]], [[1, 0]]], [[0.5], [-0.25], [1.0]], 3.0]
    for answer in both.answers:
        assert answer["told"] == [[3, 4], credit, "asked"]
        assert answer["summed"] == [2.0, 1.0]
