"""Redis comes back empty in the middle of a run: open groups are ordered again, and the ledger still balances."""

import random

import pytest
import torch

from drover.common import tensors
from drover.common.types import Ending, Purpose
from drover.learner.examples import MeasuredGroup
from drover.learner.intake import intake
from drover.learner.intake.evaluation import Due
from tests.learner.intake.test_slots import World
from tests.learner.made_up import answer, measurement, rollout

CALM = {"dies": 0.0, "fails": 0.0, "answers twice": 0.0}


class Forgetful(World):
    """A world in which all streams are emptied now and then; orders that an actor has taken stay with it."""

    forgets = 0.1
    lost = 0

    def turn(self) -> None:
        if self.chaos.random() < self.forgets:
            self.lost += 1
            for stream in (*self.work, self.rollouts, self.measurements):
                stream.clear()
        super().turn()


@pytest.mark.parametrize("seed", range(20))
def test_every_place_is_trained_once_and_in_order_though_redis_loses_messages(monkeypatch, seed):
    monkeypatch.setattr(intake, "LOSS_CHECK_S", 0.0)
    chaos = random.Random(seed)
    rates = {"dies": 0.1, "fails": 0.0, "answers twice": 0.1}
    world = Forgetful(max_lag=seed % 3, groups=3, actors=3, chaos=chaos, rates=rates)
    lags = world.train(iterations=6, groups=3)  # asserts the order and the ledger at every turn
    assert world.lost > 0
    assert max(lags) <= seed % 3
    assert world.intake.ledger.as_dict() == {
        "issued": 18, "in_flight": 0, "trained": 18, "empty": 0, "failed": 0, "stale": 0,
    }  # fmt: skip


def test_an_order_that_an_actor_works_on_is_not_issued_again(monkeypatch):
    monkeypatch.setattr(intake, "LOSS_CHECK_S", 0.0)
    world = World(max_lag=0, groups=1, actors=1, chaos=random.Random(0), rates=CALM)
    turns = iter(range(50))

    def slowly() -> None:
        if next(turns) == 40:
            (delivery,) = world.work[0].take(1, 0.0)
            world.rollouts.put(rollout(0, samples=2, epoch=delivery.message.epoch))
            world.measurements.put(measurement(0, [0.0, 1.0], epoch=delivery.message.epoch))
            world.work[0].ack(delivery)

    world.intake._wait = slowly
    (found,) = world.intake.collect(1, total=1, version=0, stopping=lambda: False)
    assert (found.rollout.epoch, world.intake.ledger.issued) == (0, 1)
    assert world.work[0].take(9, 0.0) == []


def test_the_answer_to_an_order_that_was_lost_does_not_count_beside_that_to_its_successor(monkeypatch):
    monkeypatch.setattr(intake, "LOSS_CHECK_S", 0.0)
    world = World(max_lag=0, groups=1, actors=1, chaos=random.Random(0), rates=CALM)
    (held, late), turns = (list[object](), rollout(0, samples=2)), iter(range(9))

    def lose() -> None:
        turn = next(turns)
        if turn == 0:
            held.extend(world.work[0].take(1, 0.0))
            world.work[0].clear()
        elif turn == 1:
            world.rollouts.put(late)
            world.measurements.put(measurement(0, [5.0, 5.0]))
        else:
            (again,) = world.work[0].take(1, 0.0)
            world.rollouts.put(rollout(0, samples=2, epoch=again.message.epoch))
            world.measurements.put(measurement(0, [0.0, 1.0], epoch=again.message.epoch))

    world.intake._wait = lose
    (found,) = world.intake.collect(1, total=1, version=0, stopping=lambda: False)
    assert list(found.rewards["point"].values) == [0.0, 1.0]
    assert found.rollout.epoch > 0
    world.intake.end(0, Ending.TRAINED)
    assert world.intake.ledger.as_dict()["issued"] == 1


def test_an_evaluation_whose_orders_are_lost_is_ordered_again_from_the_same_version(monkeypatch):
    monkeypatch.setattr(intake, "LOSS_CHECK_S", 0.0)
    world = World(max_lag=0, groups=1, actors=1, chaos=random.Random(0), rates=CALM)
    orders, turns = [], iter(range(9))

    def lose() -> None:
        orders.extend(delivery.message for delivery in world.work[0].take(9, 0.0))
        if next(turns) == 0:
            world.work[0].clear()
            return
        order = orders[-1]
        fields = {"purpose": Purpose.EVAL, "version": order.version, "prompts": ("h",)}
        world.rollouts.put(rollout(order.group, samples=1, epoch=order.epoch, **fields))
        world.measurements.put(measurement(order.group, [0.5], epoch=order.epoch, purpose=Purpose.EVAL))
        world.work[0].clear()

    world.intake._wait = lose
    evaluation = world.intake.evaluation
    evaluation._weights.publish(0, {}, None)
    evaluation.want(Due("before", version=0, update=0))
    world.intake.await_evaluation()
    first, second = orders
    assert (second.seed, second.draw, second.version) == (first.seed, first.draw, first.version)
    assert second.epoch > first.epoch
    assert evaluation.collect().values["t", "point"].tolist() == [0.5]


@pytest.mark.parametrize("stored", [True, False])
def test_a_complete_group_of_clean_latents_counts_as_lost_only_without_its_blob(stored):
    world = World(max_lag=0, groups=1, actors=1, chaos=random.Random(0), rates=CALM)
    world.intake.feeder.fill(1)
    key, blob = (Purpose.TRAIN, 0), "0.1/latents"
    world.intake.assembler.expect(key)
    parts, refs = tensors.pack(blob, {"x0": torch.zeros(2, 3)})
    if stored:
        world.intake._streams.blobs.put(blob, parts)
    made = rollout(0, samples=2, latents=refs["x0"])
    world.intake.assembler.complete[key] = MeasuredGroup(made, {"point": answer([0.0, 1.0])})
    assert world.intake._lost() == ([] if stored else [0])
