"""Evaluations run on actors or on evaluators, and are reported: the toy, in one process."""

from dataclasses import replace

import pytest
import torch

from drover.common.errors import ConfigError
from drover.common.metrics import NullMeter
from drover.common.transport.memory import MemoryBroker
from drover.common.types import Purpose, WorkItem
from drover.common.weights.memory import MemoryWeights
from drover.deploy.cluster.worker import pools_of
from drover.deploy.config import Pools
from drover.deploy.recipes.shapes import shapes_joint
from drover.deploy.recipes.toy_ddpo import toy_ddpo
from drover.deploy.roles import Streams, build_actor
from drover.reward_servers.rewards.toy_point import ToyPoint
from drover.worlds.plane.policy import ToyChain
from tests.deploy.in_place import small, train
from tests.learner.made_up import rollout


def test_evaluators_are_a_pool_of_their_own_as_large_as_an_actor():
    config = replace(toy_ddpo(), pools=Pools(actors=2, evaluators=3, actor_threads=4))
    actors, evaluators = (pool for pool in pools_of(config, gpus=0.5) if pool.role != "reward")
    assert [evaluators.place(number).name for number in range(evaluators.size)] == [
        "evaluator-0", "evaluator-1", "evaluator-2",
    ]  # fmt: skip
    assert (evaluators.name, evaluators.scalars) == ("evaluation", ("pool/evaluation",))
    assert (evaluators.cpus, evaluators.gpus, evaluators.group) == (actors.cpus, actors.gpus, actors.group)
    assert (actors.scalars, actors.place(1).name) == (("pool/rollout",), "actor-1")


def test_without_evaluators_there_is_no_such_pool():
    assert [pool.name for pool in pools_of(toy_ddpo(), gpus=0.0)] == ["point", "rollout"]
    assert shapes_joint(pools=Pools(evaluators=2)).pools.evaluators == 2
    with pytest.raises(ConfigError, match="every pool needs at least one"):
        Pools(evaluators=-1)


def test_an_evaluator_gives_way_while_a_reward_that_training_needs_too_is_behind_and_only_then():
    broker, weights = MemoryBroker("way"), MemoryWeights(torch.float32)
    rewards = (ToyPoint(), ToyPoint(name="other"))
    config = small(rewards=rewards, heldout=(replace(small().heldout[0], rewards=("point", "other")),))
    weights.publish(0, dict(ToyChain().trainable.named_parameters()), None)
    evaluator = build_actor(
        config, broker, weights, NullMeter(), name="evaluator-0", device="cpu", role="evaluator"
    )  # fmt: skip
    streams = Streams(broker, config)
    orders, put = streams.open(broker.keys.evaluation), streams.open(broker.keys.rollouts)
    point, other = (streams.open(broker.keys.rollouts, f"reward:{reward.name}") for reward in rewards)
    for group in (0, 1):
        orders.put(order(group, config.fingerprint))
        put.put(rollout(group, rewards=("point",)))
    for delivery in other.take(9, 0.0):
        other.ack(delivery)
    assert not evaluator.run_once(0.0)
    first, second = point.take(9, 0.0)
    assert not evaluator.run_once(0.0)
    point.ack(first)
    assert evaluator.run_once(0.0)  # one server, one group: as much as it has in hand
    point.ack(second)
    for delivery in point.take(9, 0.0):
        point.ack(delivery)
    assert other.backlog()[0] == 1 and point.backlog()[0] == 0
    for group in (2, 3):
        put.put(rollout(group, rewards=("other",)))
        point.ack(point.take(1, 0.0)[0])
    assert other.backlog()[0] == 3 and evaluator.run_once(0.0)  # training never waits for that one


def order(group: int, fingerprint: str) -> WorkItem:
    return WorkItem(
        epoch=0, group=group, purpose=Purpose.EVAL, task="t", rewards=("point", "other"), prompts=("a",),
        samples_per_prompt=2, seed=0, draw=group, record=(), fingerprint=fingerprint, version=0,
    )  # fmt: skip


def test_every_evaluation_is_reported_under_the_version_and_the_update_it_is_of(tmp_path):
    done = train(small(iterations=12, evaluate_every=3, pools=Pools(evaluators=1)), tmp_path)
    found = [report for report in done.view.reports if report.kind == "eval"]
    assert [(report.text, report.version) for report in found] == [
        ("before", 0), ("during", 3), ("during", 6), ("during", 9), ("after", 12),
    ]  # fmt: skip
    assert all(report.scalars["update"] == report.scalars["weights_version"] == report.version for report in found)
    means = [report.scalars["heldout/anywhere/point/mean"] for report in found]
    assert means == sorted(means) and len(set(means)) == 5


def test_evaluations_leave_no_trace_in_what_is_learned(tmp_path):
    plain = train(small(iterations=8), tmp_path, name="plain")
    often = train(small(iterations=8, evaluate_every=1), tmp_path, name="often")
    assert torch.equal(plain.weights, often.weights)
    assert plain.summary["reward_after"] == often.summary["reward_after"]
