import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from drover.common.errors import ConfigError, TrainingDiverged
from drover.learner import fsdp
from drover.learner.batches import Batches, StepFetcher, divide
from drover.learner.examples import LatentBatch, StepBatch
from drover.learner.objective import LossOutput, Needs
from drover.learner.spec import OptimizerSpec
from drover.learner.step import Part
from tests.learner.gloo import alone
from tests.learner.training import WEIGHTS, Rank


@pytest.fixture(autouse=True)
def process_group() -> Iterator[None]:
    with alone():
        yield


def distance(one: dict, other: dict) -> float:
    """Largest difference relative to the largest entry."""
    return max(((one[n] - other[n]).abs().max() / other[n].abs().max()).item() for n in other)


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_micro_batches_add_up_to_one_batch(batch_size):
    whole, split = Rank("toy", None), Rank("toy", None)
    (one,) = whole.learn(batch_size=1000, updates=1)
    (many,) = split.learn(batch_size=batch_size, updates=1)
    assert distance(split.weights(), whole.weights()) < 1e-6
    assert many.loss == pytest.approx(one.loss, rel=1e-5, abs=1e-7)
    assert many.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)


@pytest.mark.slow
def test_micro_batches_add_up_on_an_adapted_unet_too(tiny_folder):
    whole, split = Rank("lora", tiny_folder), Rank("lora", tiny_folder)
    (one,) = whole.learn(batch_size=1000, updates=1)
    (many,) = split.learn(batch_size=4, updates=1)
    assert many.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)
    for name, parameter in fsdp.trainable(split.module).items():
        other = fsdp.trainable(whole.module)[name]
        assert torch.allclose(fsdp.full(parameter.grad), fsdp.full(other.grad), rtol=1e-4, atol=1e-7), name


def test_the_gradient_is_the_mean_over_all_terms_and_not_over_the_computed_ones():
    """Two of four samples have weight 0, and still count in the mean."""
    some, without = Rank("toy", None, weights=((1.0, 0.0, -1.0, 0.0),)), Rank("toy", None, weights=((1.0, -1.0),))
    assert some.learn(updates=1)[0].grad_norm < without.learn(updates=1)[0].grad_norm


def test_a_weighted_sample_moves_the_weights_and_the_first_step_is_on_policy():
    rank = Rank("toy", None)
    before = rank.weights()
    first, second = rank.learn(updates=2)
    assert distance(rank.weights(), before | {"b": torch.ones(1)}) > 1e-3
    assert first.watched["ratio"] == pytest.approx(1, abs=1e-6) and first.watched["clip_fraction"] == 0
    assert abs(second.watched["ratio"] - 1) > 1e-5
    assert rank.stepper.steps == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_refused_and_changes_nothing(bad):
    rank = Rank("toy", None)
    rank.learn()
    before = rank.weights()
    moments = {k: fsdp.full(v).clone() for k, v in next(iter(rank.stepper.optimizer.state.values())).items()}
    ((batch, _),) = batches(rank, batch_size=100)
    x = batch.x.clone()
    x[0, 0] = bad
    with pytest.raises(TrainingDiverged, match=r"optimiser step 3: loss .* nothing was changed"):
        rank.stepper.step([Part(rank.objective, made_of(replace(batch, x=x)), 10.0)])
    assert torch.equal(rank.weights()["b"], before["b"])
    after = next(iter(rank.stepper.optimizer.state.values()))
    assert all(torch.equal(fsdp.full(after[name]), moment) for name, moment in moments.items())
    rank.learn()
    assert torch.isfinite(rank.weights()["b"]).all()


def test_the_learning_rate_rises_linearly_over_the_warm_up():
    rank = Rank("toy", None, spec=OptimizerSpec(lr=1e-2, warmup=4))
    rates = []
    for _ in range(6):
        rank.learn(updates=1)
        rates.append(rank.stepper.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])


def test_the_norm_that_is_told_is_the_one_before_clipping():
    free, clipped = Rank("toy", None), Rank("toy", None, spec=OptimizerSpec(lr=1e-2, grad_clip=1e-3))
    assert clipped.learn(updates=1)[0].grad_norm == pytest.approx(free.learn(updates=1)[0].grad_norm)
    assert fsdp.full(clipped.policy.trainable.b.grad).norm().item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(
    "fields", [{"lr": 0.0}, {"lr": math.nan}, {"grad_clip": 0.0}, {"warmup": -1}, {"weight_decay": -0.1}]
)
def test_an_optimiser_that_cannot_learn_is_refused(fields):
    with pytest.raises(ConfigError, match="must be positive"):
        OptimizerSpec(**{"lr": 1e-3, **fields})


def test_the_rate_rises_over_the_warm_up_and_reaches_zero_at_the_decay_step():
    spec = OptimizerSpec(lr=1.0, warmup=4, decay=10)
    assert [round(spec.rate(step), 3) for step in (0, 1, 3, 5, 9, 10, 12)] == [0.25, 0.45, 0.7, 0.5, 0.1, 0.0, 0.0]
    assert OptimizerSpec(lr=2.0).rate(10_000) == 2.0


def test_the_moving_average_begins_before_the_first_step_and_takes_the_weights_place_when_asked():
    rank = Rank("toy", None, spec=OptimizerSpec(lr=1e-2, grad_clip=100.0, ema=0.5))
    start = rank.weights()["b"]
    rank.learn(updates=1)
    first = rank.weights()["b"]
    rank.learn(updates=1)
    second = rank.weights()["b"]
    assert rank.stepper.average()
    assert torch.allclose(rank.weights()["b"], start / 4 + first / 4 + second / 2, atol=1e-7)


def test_without_a_moving_average_the_weights_stay():
    rank = Rank("toy", None)
    rank.learn(updates=1)
    weights = rank.weights()["b"]
    assert not rank.stepper.average()
    assert torch.equal(rank.weights()["b"], weights)


class Towards:
    """A loss on the weights themselves: 100 (b - target)^2."""

    learns_from = StepBatch
    watched = ("far",)
    needs = Needs()

    def __init__(self, target: float) -> None:
        self.target = target

    def credit(self, groups):
        raise AssertionError

    def loss(self, models, batch):
        far = (models.policy.trainable.b - self.target).square().sum()
        return LossOutput(total=100 * far, watched={"far": far.detach()})


def batches(rank: Rank, *, batch_size: int = 4, ranks: int = 1, number: int = 0) -> Batches:
    (share,) = divide(rank.iteration.credit, turns=3, updates=1, ranks=ranks, rank=number, batch_size=batch_size)
    fetcher = StepFetcher(rank.models, rank.blobs, device="cpu", batch_size=batch_size)
    return fetcher.batches(rank.iteration, share, 0)


def made_of(*of: StepBatch) -> Batches:
    return Batches(lambda: iter([(batch, True) for batch in of]), len(of))


def one(rank: Rank) -> StepBatch:
    return next(iter(batches(rank)))[0]


def test_another_part_pulls_in_the_same_step_and_alone_in_its_own():
    apart, together, alone = (Rank("toy", None) for _ in range(3))
    apart.learn(updates=1)
    towards = Part(Towards(5.0), made_of(one(together)), 1.0)
    stats = together.stepper.step([towards, Part(together.objective, batches(together), 30.0)])
    assert (together.weights()["b"] > 0).all() and not (apart.weights()["b"] > 0).all()
    assert stats.parts[0].loss == pytest.approx(100 * 10 * 25) and "ratio" in stats.watched
    away = Part(Towards(-5.0), made_of(one(alone)), 1.0)
    stats = alone.stepper.step([away], scheduled=False)
    assert (alone.weights()["b"] < 0).all() and alone.stepper.steps == 0
    assert stats.loss == pytest.approx(100 * 10 * 25) and stats.grad_norm == pytest.approx(200 * 5 * 10**0.5)


def test_only_declared_numbers_are_told():
    rank = Rank("toy", None)
    stats = rank.stepper.step([Part(Towards(1.0), made_of(one(rank)), 1.0)])
    assert stats.watched.keys() == {"far"}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.zeros(()), r"Towards.loss returned a Tensor; return LossOutput"),
        (LossOutput(torch.zeros(())), r"Towards.loss watches \[\], but the objective declares \['far'\]"),
    ],
)
def test_a_loss_of_another_form_is_refused_in_a_sentence(returned, message):
    rank, towards = Rank("toy", None), Towards(1.0)
    towards.loss = lambda models, batch: returned
    with pytest.raises(ConfigError, match=message):
        rank.stepper.step([Part(towards, made_of(one(rank)), 1.0)])


class Surveyed(Towards):
    """Pulls towards the mean weight of the whole optimiser step."""

    watched = ("baseline",)

    def survey(self, models, batch):
        return {"sum": batch.weight.sum(), "count": torch.tensor(float(len(batch.weight)))}

    def loss(self, models, batch):
        baseline = batch.known["sum"] / batch.known["count"]
        return LossOutput(total=0 * models.policy.trainable.b.sum(), watched={"baseline": torch.tensor(baseline)})


def test_a_survey_sums_over_all_micro_batches_before_the_loss_sees_the_first():
    rank = Rank("toy", None)
    made = [LatentBatch(b.x, b.weight, b.cond, ()) for b, _ in batches(rank)]
    stats = rank.stepper.step([Part(Surveyed(0.0), made_of(*made), 1.0)])
    weights = [w for row in WEIGHTS for w in row if w]
    assert stats.watched["baseline"] * 30 / len(made) == pytest.approx(sum(weights) / len(weights), rel=1e-5)
