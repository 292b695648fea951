"""Evaluations of one version each, with a real evaluator and a real reward in between."""

import numpy as np
import pytest
import torch

from drover.actors.sampler import Plain
from drover.actors.worker import Actor, ActorWiring
from drover.common.errors import BlobMissing, WeightsLost
from drover.common.metrics import NullMeter
from drover.common.transport.memory import MemoryBroker
from drover.common.types import GroupFailed, Purpose, Stage
from drover.common.weights.memory import MemoryWeights
from drover.learner.intake.assembler import Assembler
from drover.learner.intake.evaluation import Due, Evaluation, EvaluationSpec
from drover.reward_servers.rewards.toy_point import ToyPoint
from drover.reward_servers.serving.groups import Groups
from drover.reward_servers.serving.server import RewardServer
from drover.worlds.plane.model import toy_kernel
from drover.worlds.plane.policy import ToyChain

PROMPTS = ("a", "b", "c")
SPEC = EvaluationSpec(name="held", prompts=PROMPTS, samples_per_prompt=16, rewards=("point",), limits={"point": -2.0})


class House:
    """An evaluation with its evaluator and its reward server, which work when `work` is called."""

    def __init__(self) -> None:
        broker = MemoryBroker("house")
        keys, self.blobs, self.weights = broker.keys, broker.blobs(), MemoryWeights(torch.float32)
        self.orders = broker.stream(keys.evaluation, "evaluators")
        failures = broker.stream(keys.measurements, groups=("learner",))
        rollouts = broker.stream(keys.rollouts, groups=("learner", "reward:point"))
        self.evaluator = Actor(
            "evaluator-0",
            ToyChain(),
            Plain(toy_kernel()),
            ActorWiring(
                work=self.orders, rollouts=rollouts, failures=failures, blobs=self.blobs, weights=self.weights,
                meter=NullMeter(),
            ),
            first_condition="a", fingerprint="f", storage=torch.float32, device="cpu", role="evaluator",
        )  # fmt: skip
        inbox = Groups(
            name="point-0", reward="point", rollouts=broker.stream(keys.rollouts, "reward:point"),
            measurements=failures, blobs=self.blobs, meter=NullMeter(),
        )  # fmt: skip
        self.server = RewardServer("point", ToyPoint().load("cpu"), inbox, NullMeter())
        self.assembler = Assembler(
            broker.stream(keys.rollouts, "learner"), broker.stream(keys.measurements, "learner"), self.blobs, epoch=3
        )
        put = broker.stream(keys.evaluation, groups=("evaluators",))
        self.evaluation = Evaluation(
            (SPEC,), put, self.assembler, self.weights, epoch=3, seed=1, fingerprint="f"
        )  # fmt: skip

    def publish(self, *versions: int) -> None:
        """Publish weights that lead further from the goal with every version."""
        for version in versions:
            policy = ToyChain()
            policy.trainable.b.data[:] = 0.1 * version
            self.weights.publish(version, dict(policy.trainable.named_parameters()), None)

    def want(self, version: int, moment: str = "during") -> None:
        self.evaluation.want(Due(moment, version, update=10 * version))

    def work(self, orders: int = 100) -> None:
        """Let the evaluator take up to ``orders`` orders, and the reward server all groups that wait."""
        for _ in range(orders):
            if not self.evaluator.run_once(0.0):
                break
        while self.server.run_once(0.0):
            pass
        self.assembler.poll(0.0)

    def here(self, version: int) -> bool:
        try:
            self.weights.load(version, ToyChain().trainable)
        except WeightsLost:
            return False
        return True


@pytest.fixture
def house() -> House:
    house = House()
    house.publish(0)
    return house


def test_an_evaluation_judges_the_version_asked_for_however_far_training_got_meanwhile(house):
    house.want(0)
    house.work()
    undisturbed = house.evaluation.collect()
    house.want(0)
    house.work(orders=1)
    house.publish(1, 2, 3)
    assert not house.evaluation.done
    house.work()
    assert house.evaluation.done
    found = house.evaluation.collect()
    assert found.due == Due("during", version=0, update=0) and found.lost == 0
    assert found.values["held", "point"].shape == (48,)
    assert np.array_equal(found.values["held", "point"], undisturbed.values["held", "point"])  # the same seeds, too
    assert found.scalars()["weights_version"] == 0.0 and found.scalars()["heldout/held/point/limit"] == -2.0


def test_another_version_is_found_to_be_another(house):
    means = []
    for version in (1, 2):
        house.publish(version)
        house.want(version)
        house.work()
        means.append(house.evaluation.collect().scalars())
    assert [each["weights_version"] for each in means] == [1, 2] and [each["update"] for each in means] == [10, 20]
    assert means[0]["heldout/held/point/mean"] > means[1]["heldout/held/point/mean"] + 1


def test_a_version_is_kept_while_it_is_evaluated_and_no_longer(house):
    house.want(0)
    house.publish(1, 2)
    assert house.here(0) and not house.here(1)
    house.work()
    assert house.here(0)
    house.evaluation.collect()
    assert not house.here(0) and house.here(2)
    assert not house.evaluation.running


def test_an_evaluation_due_during_another_waits_with_its_version_kept_and_begins_after_it(house):
    house.want(0, "before")
    house.publish(1)
    house.want(1)
    house.publish(2, 3)
    assert house.here(0) and house.here(1) and house.orders.backlog()[0] == 3
    house.work()
    assert house.evaluation.collect().due.moment == "before"
    assert house.evaluation.running and not house.evaluation.done
    house.work()
    found = house.evaluation.collect()
    assert (found.due, found.skipped) == (Due("during", version=1, update=10), 0)
    assert not house.evaluation.running and not house.here(1)


def test_of_what_waits_only_the_newest_is_evaluated_and_the_others_are_counted_and_let_go(house):
    house.want(0)
    for version in (1, 2, 3):
        house.publish(version)
        house.want(version)
    assert [house.here(version) for version in range(4)] == [True, False, False, True]
    house.work()
    house.evaluation.collect()
    house.work()
    found = house.evaluation.collect()
    assert (found.due.version, found.skipped, found.lost) == (3, 2, 0)
    assert found.scalars()["evaluation/skipped"] == 2


def test_orders_that_fail_are_counted_and_the_rest_is_found(house):
    house.want(0)
    (lost,) = house.orders.take(1, 0.0)
    house.evaluator.wiring.failures.put(
        GroupFailed(
            epoch=3, group=lost.message.group, attempt=1, purpose=Purpose.EVAL, stage=Stage.SAMPLE, reason="lost"
        )
    )  # fmt: skip
    house.orders.ack(lost)
    house.work()
    found = house.evaluation.collect()
    assert found.lost == 1 and found.values["held", "point"].shape == (32,)
    assert found.scalars()["evaluation/lost_orders"] == 1


def test_an_evaluation_of_which_everything_fails_says_so_and_the_next_is_whole(house):
    house.want(0)
    house.weights.unpin(0)  # as when the carrier loses the version that it was to keep
    house.publish(1)
    house.work()
    found = house.evaluation.collect()
    assert found.lost == 3 and found.values == {} and found.due.version == 0
    house.want(1)
    house.work()
    assert house.evaluation.collect().values["held", "point"].shape == (48,)


def test_a_version_that_is_gone_is_not_evaluated(house):
    house.publish(1)
    with pytest.raises(WeightsLost, match="version 0 cannot be pinned"):
        house.want(0)
    assert not house.evaluation.running and house.orders.backlog()[0] == 0


def test_only_the_blobs_of_pictures_that_will_be_shown_stay(house):
    house.want(0)
    house.work()
    refs = [group.rollout.media for group in house.assembler.complete.values()]
    found = house.evaluation.collect()
    shown = {blob for ref in found.media for blob in ref.blobs}
    assert found.prompts == PROMPTS and {ref.num_samples for ref in found.media} == {4}
    for blob in (blob for ref in refs for blob in ref.blobs):
        if blob in shown:
            house.blobs.get(blob)
        else:
            with pytest.raises(BlobMissing):
                house.blobs.get(blob)
