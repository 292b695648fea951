import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from drover.actors.sampler import Plain
from drover.actors.worker import MAX_ATTEMPTS, Actor, ActorWiring
from drover.common import tensors
from drover.common.diffusion.canary import canary
from drover.common.diffusion.kernels.renoise import Consistency, Renoise
from drover.common.diffusion.spacing import Leading
from drover.common.errors import WeightSyncFailed
from drover.common.media.blobs import read
from drover.common.metrics import NullMeter
from drover.common.protocols import Canary
from drover.common.transport.memory import MemoryBroker
from drover.common.types import GroupFailed, Purpose, RolloutGroup, Stage, WorkItem
from drover.common.weights.memory import MemoryWeights
from drover.worlds.plane.model import toy_kernel
from drover.worlds.plane.policy import ToyChain, read_points


def order(group: int = 0, **fields) -> WorkItem:
    usual = {
        "purpose": Purpose.TRAIN, "prompts": ("a",), "samples_per_prompt": 4, "seed": 1, "draw": group,
        "record": (0, 1, 3), "fingerprint": "f",
        "task": "t", "rewards": ("r",),
    }  # fmt: skip
    return WorkItem(epoch=5, group=group, **{**usual, **fields})


class Meter(NullMeter):
    """A meter that remembers the name and value of every addition."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float]] = []

    def add(self, metric, value=1.0, **labels):
        super().add(metric, value, **labels)
        self.told.append((metric.name, value))


class Workshop:
    """An actor with its streams, and a published version 0 of the toy's weights."""

    def __init__(self, published: bool = True, policy: ToyChain | None = None, **options) -> None:
        self.broker = MemoryBroker("actor")
        keys = self.broker.keys
        self.work = self.broker.stream(keys.work, groups=("actors",))
        self.rollouts = self.broker.stream(keys.rollouts, "learner")
        self.failures = self.broker.stream(keys.measurements, "learner")
        self.weights, self.meter, self.policy = MemoryWeights(torch.float32), Meter(), policy or ToyChain()
        self.mine = self.broker.stream(keys.work, "actors")
        self.actor = Actor(
            "actor-0",
            self.policy,
            Plain(toy_kernel()),
            ActorWiring(
                work=self.mine, rollouts=self.rollouts, failures=self.failures, blobs=self.broker.blobs(),
                weights=self.weights, meter=self.meter,
            ),
            first_condition="a", fingerprint="f", storage=torch.float32, device="cpu", **options,
        )  # fmt: skip
        if published:
            self.publish(0)

    def publish(self, version: int, shift: float = 0.0, proof: Canary | None = None) -> None:
        policy = ToyChain()
        policy.trainable.b.data += shift
        value = canary(policy, "a", "cpu")
        tensors_ = dict(policy.trainable.named_parameters())
        self.weights.publish(version, tensors_, proof or Canary(value=value, tolerance=1e-6))

    def messages(self, stream) -> list:
        return [delivery.message for delivery in stream.take(100, 0.0)]


@pytest.fixture
def shop() -> Workshop:
    return Workshop()


def test_an_order_becomes_one_group_with_its_tensors_and_is_acknowledged(shop):
    shop.work.put(order(3))
    assert shop.actor.run_once(0.0)
    (group,) = shop.messages(shop.rollouts)
    assert isinstance(group, RolloutGroup)
    assert (group.epoch, group.group, group.attempt, group.version, group.worker) == (5, 3, 1, 0, "actor-0")
    assert group.transitions.steps == (0, 1, 3) and group.latents is None
    blobs = shop.broker.blobs()
    states, media = tensors.read(blobs, group.transitions.states), read(blobs, group.media)
    assert states.shape == (4, 5, 2) and tensors.read(blobs, group.transitions.log_probs).shape == (4, 3, 1)
    assert torch.allclose(states[:, -1], states[:, 4]) and media.pixels.shape == (4, 1, 2, 3)
    assert shop.mine.backlog()[0] == 0
    assert not shop.actor.run_once(0.0)
    assert ("drover_samples_total", 4) in shop.meter.told


def test_the_media_show_the_clean_latents_that_can_travel_too():
    shop = Workshop()
    shop.work.put(order(3, record=(), keep_latents=True))
    shop.actor.run_once(0.0)
    (group,) = shop.messages(shop.rollouts)
    assert group.transitions is None
    latents = tensors.read(shop.broker.blobs(), group.latents).numpy()
    assert abs(read_points(read(shop.broker.blobs(), group.media)) - latents).max() < 2e-4


def test_a_group_larger_than_the_bound_goes_through_the_model_in_turns_and_is_the_same():
    whole, split = Workshop(), Workshop(batch_samples=3)
    sizes = []
    predict = split.actor.policy.predict
    split.actor.policy.predict = lambda x, time, cond: sizes.append(len(x)) or predict(x, time, cond)
    made = []
    for shop in (whole, split):
        shop.work.put(order(3, samples_per_prompt=8))
        shop.actor.run_once(0.0)
        (group,) = shop.messages(shop.rollouts)
        blobs, steps = shop.broker.blobs(), group.transitions
        pixels = torch.from_numpy(read(blobs, group.media).pixels)
        made.append([pixels, *(tensors.read(blobs, ref) for ref in (steps.states, steps.log_probs))])
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))
    assert sizes == [1] + [3] * 5 + [3] * 5 + [2] * 5  # the canary first


class Watched:
    """A stream that notes the name of each watched call, and passes the call on."""

    def __init__(self, name: str, target, calls: list[str], verbs: Sequence[str]) -> None:
        self._name, self._target, self._calls, self._verbs = name, target, calls, verbs

    def __getattr__(self, verb: str):
        def call(*args, **options):
            if verb in self._verbs:
                self._calls.append(f"{self._name}.{verb}")
            return getattr(self._target, verb)(*args, **options)

        return call


def test_blobs_come_before_the_message_and_the_message_before_the_acknowledgement(shop):
    calls: list[str] = []
    wiring = shop.actor.wiring
    watched = {
        "work": Watched("work", wiring.work, calls, ["ack"]),
        "rollouts": Watched("rollouts", wiring.rollouts, calls, ["put"]),
        "blobs": Watched("blobs", wiring.blobs, calls, ["put"]),
    }
    shop.actor.wiring = ActorWiring(
        failures=wiring.failures, weights=wiring.weights, meter=wiring.meter, **watched
    )  # fmt: skip
    shop.work.put(order())
    shop.actor.run_once(0.0)
    assert calls == ["blobs.put", "blobs.put", "rollouts.put", "work.ack"]


def test_a_redelivered_order_gives_the_same_samples_as_another_attempt(shop):
    shop.work.put(order(3))
    shop.actor.run_once(0.0)
    other = Workshop()
    other.work.put(order(3))
    victim = other.broker.stream(other.broker.keys.work, "actors")
    victim.hand_back(victim.take(1, 0.0)[0])
    other.actor.run_once(0.0)
    first, second = (one.messages(one.rollouts)[0] for one in (shop, other))
    assert (first.attempt, second.attempt) == (1, 2)
    assert not set(first.blobs) & set(second.blobs)
    states = [tensors.read(one.broker.blobs(), g.transitions.states) for one, g in ((shop, first), (other, second))]
    assert torch.equal(*states)


def test_new_weights_are_taken_up_at_the_next_order(shop):
    for version, shift in ((0, 0.0), (4, 0.5)):
        shop.publish(version, shift)
        shop.work.put(order(version, draw=0))
        shop.actor.run_once(0.0)
    old, new = shop.messages(shop.rollouts)
    assert (old.version, new.version) == (0, 4)
    assert shop.policy.trainable.b[0, 0].item() == 0.5
    points = [read_points(read(shop.broker.blobs(), g.media)) for g in (old, new)]
    moved = 0.5 * sum(0.8**i for i in range(5))
    assert (points[1] - points[0]).mean() == pytest.approx(moved, abs=1e-3)


def test_an_order_for_a_version_is_sampled_from_that_one_and_the_next_from_the_newest_again(shop):
    shop.weights.pin(0)
    shop.publish(4, 0.5)
    for group, version in ((0, 0), (1, None), (2, 0), (3, 4)):
        shop.work.put(order(group, draw=0, version=version))
        shop.actor.run_once(0.0)
    made = shop.messages(shop.rollouts)
    assert [group.version for group in made] == [0, 4, 0, 4]
    points = [read_points(read(shop.broker.blobs(), group.media)) for group in made]
    assert (points[0] == points[2]).all() and (points[1] == points[3]).all()
    assert abs(points[1] - points[0]).min() > 0.5


def test_orders_for_several_versions_that_wait_together_are_each_sampled_from_their_own():
    shop = Workshop(batch_groups=4)
    shop.weights.pin(0)
    shop.publish(4, 0.5)
    for group, version in enumerate((0, 0, None, 4)):
        shop.work.put(order(group, version=version))
    assert shop.actor.run_once(0.0) and not shop.actor.run_once(0.0)
    assert [(group.group, group.version) for group in shop.messages(shop.rollouts)] == [(0, 0), (1, 0), (2, 4), (3, 4)]


def test_an_order_for_a_version_that_is_gone_fails_and_is_sampled_from_no_other():
    shop = Workshop(batch_groups=2)
    shop.publish(4, 0.5)
    shop.work.put(order(0, version=0))
    shop.work.put(order(1))
    shop.actor.run_once(0.0)
    (failed,) = shop.messages(shop.failures)
    assert (failed.group, failed.stage) == (0, Stage.SAMPLE)
    assert failed.reason == "its weights are lost: version 0 is not here; the newest is 4"
    assert [(group.group, group.version) for group in shop.messages(shop.rollouts)] == [(1, 4)]
    assert len(shop.broker.dead_letters()) == 1 and shop.mine.backlog()[0] == 0


def test_an_evaluators_time_is_its_own_roles():
    shop = Workshop(role="evaluator")
    roles = []
    shop.meter.set = lambda metric, value, **given: roles.append(given.get("role"))
    shop.work.put(order())
    shop.actor.run_once(0.0)
    assert roles.count("evaluator") >= 1 and "actor" not in roles
    with pytest.raises(ValueError, match="role='judge' is none of"):
        Workshop(role="judge").actor.run_once(0.0)


def test_orders_sampled_in_one_batch_give_what_each_gives_alone():
    together, alone = Workshop(batch_groups=4), Workshop()
    orders = [order(0), order(1, record=(2,)), order(2, record=(), samples_per_prompt=2, prompts=("a", "b"))]
    for item in orders:
        together.work.put(item)
        alone.work.put(item)
        alone.actor.run_once(0.0)
    assert together.actor.run_once(0.0) and not together.actor.run_once(0.0)
    batched, single = together.messages(together.rollouts), alone.messages(alone.rollouts)
    assert [group.group for group in batched] == [0, 1, 2]
    assert [None if g.transitions is None else g.transitions.steps for g in batched] == [(0, 1, 3), (2,), None]
    for one, other in zip(batched[:2], single[:2], strict=True):
        for name in ("states", "log_probs"):
            mine = tensors.read(together.broker.blobs(), getattr(one.transitions, name))
            theirs = tensors.read(alone.broker.blobs(), getattr(other.transitions, name))
            assert torch.allclose(mine, theirs, atol=1e-6), name
    media = [read(s.broker.blobs(), g[2].media).pixels for s, g in ((together, batched), (alone, single))]
    assert np.array_equal(*media)


def test_a_held_out_set_is_drawn_by_its_own_sampler_and_training_by_the_runs():
    halfway = Plain(Renoise(2, Consistency(), Leading(offset=0)))  # times 2 and 0
    shop, plain = Workshop(batch_groups=4, samplers={"short": halfway}), Workshop(batch_groups=4)
    held = {"record": (), "draw": 0, "purpose": Purpose.EVAL}
    orders = [order(0, draw=0), order(1, **held, task="short"), order(2, **held, task="short"), order(3, **held)]
    orders.append(order(4, draw=0, task="short"))  # of training, under the name of the held-out set
    made = []
    for each in (shop, plain):
        for item in orders:
            each.work.put(item)
        while each.actor.run_once(0.0):
            pass
        groups = sorted(each.messages(each.rollouts), key=lambda group: group.group)
        made.append([read_points(read(each.broker.blobs(), group.media)) for group in groups])
    assert [bool((a == b).all()) for a, b in zip(*made, strict=True)] == [True, False, False, True, True]
    assert (made[0][1] == made[0][2]).all()


class Poisonable(ToyChain):
    """The toy, except that prompts with "poison" make latents that are not finite."""

    def encode(self, prompts):
        return {"text": torch.tensor([[float("nan") if "poison" in prompt else 0.0] for prompt in prompts])}

    def predict(self, x, time, cond):
        return super().predict(x + cond["text"], time, cond)


def test_of_a_batch_only_what_is_wrong_fails():
    policy = Poisonable()
    shop = Workshop(batch_groups=4, policy=policy)
    shop.publish(1)
    for item in (order(0), order(1, prompts=("poison",)), order(2, fingerprint="other"), order(3)):
        shop.work.put(item)
    shop.actor.run_once(0.0)
    assert policy.trainable.b.isfinite().all()
    assert [group.group for group in shop.messages(shop.rollouts)] == [0, 3]
    assert sorted(failed.group for failed in shop.messages(shop.failures)) == [1, 2]
    assert shop.mine.backlog()[0] == 0


def test_a_group_that_cannot_be_sampled_fails_with_its_reason_and_is_buried(shop):
    shop.publish(1, float("nan"), Canary(value=0.0, tolerance=float("inf")))
    shop.actor._check = lambda canary, version: None  # the weights arrive as published, but the published ones are bad
    shop.work.put(order(3))
    assert shop.actor.run_once(0.0)
    (failed,) = shop.messages(shop.failures)
    assert isinstance(failed, GroupFailed)
    assert (failed.group, failed.stage, failed.epoch) == (3, Stage.SAMPLE, 5)
    assert failed.reason.startswith("latents are not finite")
    (letter,) = shop.broker.dead_letters()
    assert letter.reason == failed.reason and letter.attempt == 1
    assert shop.messages(shop.rollouts) == [] and shop.mine.backlog()[0] == 0


def test_an_order_of_another_recipe_fails_and_is_not_sampled(shop):
    shop.work.put(order(3, fingerprint="other"))
    shop.actor.run_once(0.0)
    (failed,) = shop.messages(shop.failures)
    assert failed.reason == "made for recipe other, this actor runs f"
    assert len(shop.broker.dead_letters()) == 1 and shop.messages(shop.rollouts) == []


def test_an_order_that_killed_its_actors_too_often_fails(shop):
    shop.work.put(order(3))
    for _ in range(MAX_ATTEMPTS):
        victim = shop.broker.stream(shop.broker.keys.work, "actors")
        (delivery,) = victim.take(1, 0.0)
        victim.hand_back(delivery)
    shop.actor.run_once(0.0)
    (failed,) = shop.messages(shop.failures)
    assert failed.attempt == MAX_ATTEMPTS + 1 == 4
    assert failed.reason == "3 attempts ended without a result"
    assert shop.messages(shop.rollouts) == []


def test_the_last_allowed_attempt_is_sampled(shop):
    shop.work.put(order(3))
    for _ in range(MAX_ATTEMPTS - 1):
        victim = shop.broker.stream(shop.broker.keys.work, "actors")
        victim.hand_back(victim.take(1, 0.0)[0])
    shop.actor.run_once(0.0)
    (group,) = shop.messages(shop.rollouts)
    assert group.attempt == 3


@pytest.mark.parametrize("off", [0.01, float("nan")])
def test_weights_that_do_not_compute_what_the_learner_computes_are_refused(shop, off):
    value = canary(ToyChain(), "a", "cpu")
    shop.publish(1, 0.0, Canary(value=value + off, tolerance=1e-3))
    shop.work.put(order())
    with pytest.raises(WeightSyncFailed, match="after loading version 1 the canary is"):
        shop.actor.run_once(0.0)
    assert shop.actor.version != 1 and shop.messages(shop.rollouts) == []


def test_weights_that_bind_to_nothing_are_caught(shop):
    shop.weights.publish(1, {}, None)
    shop.work.put(order())
    with pytest.raises(WeightSyncFailed, match="holds 0 tensors for a module with 1 trainable"):
        shop.actor.run_once(0.0)


def test_weights_that_land_in_a_module_nobody_computes_with_are_caught(shop):
    """The parameters of a copy are filled, as by a wrapper that forwards to another module."""
    shop.policy.predict = ToyChain().predict
    shop.publish(1, 0.5)
    shop.work.put(order())
    with pytest.raises(WeightSyncFailed, match="the weights did not take effect here"):
        shop.actor.run_once(0.0)


def test_without_weights_it_waits_and_hands_the_order_back_when_told_to_stop():
    shop, stop = Workshop(published=False), threading.Event()
    shop.work.put(order(3))
    thread = threading.Thread(target=shop.actor.run, args=(stop.is_set,))
    thread.start()
    time.sleep(0.1)
    assert shop.messages(shop.rollouts) == []
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
    (delivery,) = shop.broker.stream(shop.broker.keys.work, "actors").take(1, 0.0)
    assert (delivery.message.group, delivery.attempt) == (3, 2)
    assert shop.messages(shop.failures) == [] and shop.broker.dead_letters() == []


def test_it_begins_to_work_as_soon_as_a_version_is_published():
    shop, stop = Workshop(published=False), threading.Event()
    shop.work.put(order(3))
    thread = threading.Thread(target=shop.actor.run, args=(stop.is_set,))
    thread.start()
    shop.publish(0)
    (delivery,) = shop.rollouts.take(1, 5.0)
    stop.set()
    thread.join(5)
    assert delivery.message.group == 3 and not thread.is_alive()
    assert shop.actor.spent["compute"] >= 0
