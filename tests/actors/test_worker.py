import threading
import time
from collections.abc import Sequence

import pytest
import torch

from actors.worker import MAX_ATTEMPTS, Actor, ActorWiring
from common import tensors
from common.diffusion.canary import canary_log_prob
from common.errors import WeightSyncFailed
from common.metrics import NullMeter
from common.policies.toy import ToyChain, read_points, toy_kernel
from common.protocols import Canary
from common.transport.memory import MemoryBroker
from common.types import GroupFailed, Purpose, RolloutGroup, Stage, WorkItem
from common.weights.memory import MemoryWeights


def order(group: int = 0, **fields) -> WorkItem:
    usual = {
        "purpose": Purpose.TRAIN, "prompts": ("a",), "samples_per_prompt": 4, "seed": 1, "draw": group,
        "record": (0, 1, 3), "fingerprint": "f",
    }  # fmt: skip
    return WorkItem(epoch=5, group=group, **{**usual, **fields})


class Meter(NullMeter):
    """Remembers what was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float]] = []

    def add(self, metric, value=1.0, **labels):
        super().add(metric, value, **labels)
        self.told.append((metric.name, value))


class Stage_:
    """An actor with its streams, and a published version 0 of the toy's weights."""

    def __init__(self, published: bool = True, **options) -> None:
        self.broker = MemoryBroker("actor")
        keys = self.broker.keys
        self.work = self.broker.stream(keys.work, groups=("actors",))
        self.rollouts = self.broker.stream(keys.rollouts, "learner")
        self.failures = self.broker.stream(keys.measurements, "learner")
        self.weights, self.meter, self.policy = MemoryWeights(torch.float32), Meter(), ToyChain()
        self.mine = self.broker.stream(keys.work, "actors")
        self.actor = Actor(
            "actor-0",
            self.policy,
            toy_kernel(),
            ActorWiring(
                work=self.mine, rollouts=self.rollouts, failures=self.failures, blobs=self.broker.blobs(),
                weights=self.weights, meter=self.meter,
            ),
            fingerprint="f", storage=torch.float32, device="cpu", **options,
        )  # fmt: skip
        if published:
            self.publish(0)

    def publish(self, version: int, shift: float = 0.0, canary: Canary | None = None) -> None:
        policy = ToyChain()
        policy.trainable.b.data += shift
        value = canary_log_prob(policy, toy_kernel(), "cpu")
        tensors_ = dict(policy.trainable.named_parameters())
        self.weights.publish(version, tensors_, canary or Canary(value=value, tolerance=1e-6))

    def messages(self, stream) -> list:
        return [delivery.message for delivery in stream.take(100, 0.0)]


@pytest.fixture
def stage() -> Stage_:
    return Stage_()


def test_an_order_becomes_one_group_with_its_tensors_and_is_acknowledged(stage):
    stage.work.put(order(3))
    assert stage.actor.run_once(0.0)
    (group,) = stage.messages(stage.rollouts)
    assert isinstance(group, RolloutGroup)
    assert (group.epoch, group.group, group.attempt, group.version, group.worker) == (5, 3, 1, 0, "actor-0")
    assert group.transitions.steps == (0, 1, 3) and group.x0 is None
    blobs = stage.broker.blobs()
    states, media = (tensors.read(blobs, ref) for ref in (group.transitions.states, group.media))
    assert states.shape == (4, 5, 2) and tensors.read(blobs, group.transitions.log_probs).shape == (4, 3)
    assert torch.allclose(states[:, -1], states[:, 4]) and media.shape == (4, 1, 2, 3)
    assert stage.mine.backlog()[0] == 0
    assert not stage.actor.run_once(0.0)
    assert ("drover_samples_total", 4) in stage.meter.told


def test_the_media_show_the_clean_latents_that_can_travel_too():
    stage = Stage_(keep_x0=True)
    stage.work.put(order(3, record=()))
    stage.actor.run_once(0.0)
    (group,) = stage.messages(stage.rollouts)
    assert group.transitions is None
    x0, media = (tensors.read(stage.broker.blobs(), ref).numpy() for ref in (group.x0, group.media))
    assert abs(read_points(media) - x0).max() < 2e-4


class Watched:
    """A stream that notes what was called, and passes it on."""

    def __init__(self, name: str, target, calls: list[str], verbs: Sequence[str]) -> None:
        self._name, self._target, self._calls, self._verbs = name, target, calls, verbs

    def __getattr__(self, verb: str):
        def call(*args, **options):
            if verb in self._verbs:
                self._calls.append(f"{self._name}.{verb}")
            return getattr(self._target, verb)(*args, **options)

        return call


def test_blobs_come_before_the_message_and_the_message_before_the_acknowledgement(stage):
    calls: list[str] = []
    wiring = stage.actor.wiring
    watched = {
        "work": Watched("work", wiring.work, calls, ["ack"]),
        "rollouts": Watched("rollouts", wiring.rollouts, calls, ["put"]),
        "blobs": Watched("blobs", wiring.blobs, calls, ["put"]),
    }
    stage.actor.wiring = ActorWiring(
        failures=wiring.failures, weights=wiring.weights, meter=wiring.meter, **watched
    )  # fmt: skip
    stage.work.put(order())
    stage.actor.run_once(0.0)
    assert calls == ["blobs.put", "blobs.put", "rollouts.put", "work.ack"]


def test_a_redelivered_order_gives_the_same_samples_as_another_attempt(stage):
    stage.work.put(order(3))
    dead = stage.broker.stream(stage.broker.keys.work, "actors")
    (delivery,) = dead.take(1, 0.0)
    stage.actor._handle(delivery)  # published, but its actor died before the acknowledgement reached the stream
    (first,) = stage.messages(stage.rollouts)
    stage.work.put(order(3))
    stage.actor.run_once(0.0)
    (second,) = stage.messages(stage.rollouts)
    one, other = (tensors.read(stage.broker.blobs(), g.transitions.states) for g in (first, second))
    assert torch.equal(one, other)


def test_new_weights_are_taken_up_at_the_next_order(stage):
    for version, shift in ((0, 0.0), (4, 0.5)):
        stage.publish(version, shift)
        stage.work.put(order(0))
        stage.actor.run_once(0.0)
    old, new = stage.messages(stage.rollouts)
    assert (old.version, new.version) == (0, 4)
    assert stage.policy.trainable.b[0, 0].item() == 0.5
    points = [read_points(tensors.read(stage.broker.blobs(), g.media).numpy()) for g in (old, new)]
    moved = 0.5 * sum(0.8**i for i in range(5))
    assert (points[1] - points[0]).mean() == pytest.approx(moved, abs=1e-3)


def test_a_group_that_cannot_be_sampled_fails_with_its_reason_and_is_buried(stage):
    stage.publish(1, float("nan"), Canary(value=0.0, tolerance=float("inf")))
    stage.actor._check = lambda canary, version: None  # the weights arrive as published; it is they that are bad
    stage.work.put(order(3))
    assert stage.actor.run_once(0.0)
    (failed,) = stage.messages(stage.failures)
    assert isinstance(failed, GroupFailed)
    assert (failed.group, failed.stage, failed.epoch) == (3, Stage.SAMPLE, 5)
    assert failed.reason.startswith("latents are not finite")
    (letter,) = stage.broker.dead_letters()
    assert letter.reason == failed.reason and letter.attempt == 1
    assert stage.messages(stage.rollouts) == [] and stage.mine.backlog()[0] == 0


def test_an_order_of_another_recipe_fails_and_is_not_sampled(stage):
    stage.work.put(order(3, fingerprint="other"))
    stage.actor.run_once(0.0)
    (failed,) = stage.messages(stage.failures)
    assert failed.reason == "made for recipe other, this actor runs f"
    assert len(stage.broker.dead_letters()) == 1 and stage.messages(stage.rollouts) == []


def test_an_order_that_killed_its_actors_too_often_fails(stage):
    stage.work.put(order(3))
    for _ in range(MAX_ATTEMPTS):
        victim = stage.broker.stream(stage.broker.keys.work, "actors")
        (delivery,) = victim.take(1, 0.0)
        victim.hand_back(delivery)
    stage.actor.run_once(0.0)
    (failed,) = stage.messages(stage.failures)
    assert failed.attempt == MAX_ATTEMPTS + 1 == 4
    assert failed.reason == "3 attempts ended without a result"
    assert stage.messages(stage.rollouts) == []


def test_the_last_allowed_attempt_is_sampled(stage):
    stage.work.put(order(3))
    for _ in range(MAX_ATTEMPTS - 1):
        victim = stage.broker.stream(stage.broker.keys.work, "actors")
        victim.hand_back(victim.take(1, 0.0)[0])
    stage.actor.run_once(0.0)
    (group,) = stage.messages(stage.rollouts)
    assert group.attempt == 3


@pytest.mark.parametrize("off", [0.01, float("nan")])
def test_weights_that_do_not_compute_what_the_learner_computes_are_refused(stage, off):
    value = canary_log_prob(ToyChain(), toy_kernel(), "cpu")
    stage.publish(1, 0.0, Canary(value=value + off, tolerance=1e-3))
    stage.work.put(order())
    with pytest.raises(WeightSyncFailed, match="after loading version 1 the canary log-prob is"):
        stage.actor.run_once(0.0)
    assert stage.actor.version != 1 and stage.messages(stage.rollouts) == []


def test_weights_that_bind_to_nothing_are_caught(stage):
    stage.weights.publish(1, {}, None)
    stage.work.put(order())
    with pytest.raises(WeightSyncFailed, match="holds 0 tensors for a module with 1 trainable"):
        stage.actor.run_once(0.0)


def test_weights_that_land_in_a_module_nobody_computes_with_are_caught(stage):
    """The parameters of a copy are filled, as by a wrapper that forwards to another module."""
    stage.policy.predict = ToyChain().predict
    stage.publish(1, 0.5)
    stage.work.put(order())
    with pytest.raises(WeightSyncFailed, match="the weights did not take effect here"):
        stage.actor.run_once(0.0)


def test_without_weights_it_waits_and_hands_the_order_back_when_told_to_stop():
    stage, stop = Stage_(published=False), threading.Event()
    stage.work.put(order(3))
    thread = threading.Thread(target=stage.actor.run, args=(stop.is_set,))
    thread.start()
    time.sleep(0.1)
    assert stage.messages(stage.rollouts) == []
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
    (delivery,) = stage.broker.stream(stage.broker.keys.work, "actors").take(1, 0.0)
    assert (delivery.message.group, delivery.attempt) == (3, 2)
    assert stage.messages(stage.failures) == [] and stage.broker.dead_letters() == []


def test_it_begins_to_work_as_soon_as_a_version_is_published():
    stage, stop = Stage_(published=False), threading.Event()
    stage.work.put(order(3))
    thread = threading.Thread(target=stage.actor.run, args=(stop.is_set,))
    thread.start()
    stage.publish(0)
    (delivery,) = stage.rollouts.take(1, 5.0)
    stop.set()
    thread.join(5)
    assert delivery.message.group == 3 and not thread.is_alive()
    assert stage.actor.spent["compute"] >= 0
