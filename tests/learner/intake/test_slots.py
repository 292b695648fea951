"""The bound on lag and the ledger hold with simulated actors that are slow, fail, die and answer twice."""

import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drover.common.errors import DroverError
from drover.common.metrics import Account, NullMeter
from drover.common.transport.memory import MemoryBroker
from drover.common.types import Ending
from drover.common.weights.memory import MemoryWeights
from drover.learner.intake.assembler import Assembler
from drover.learner.intake.evaluation import Evaluation, EvaluationSpec
from drover.learner.intake.feeder import Feeder
from drover.learner.intake.intake import Intake, LearnerStreams
from drover.learner.intake.slots import Ledger, Slots
from drover.learner.intake.tasks import Order, RecordSteps, Task
from tests.learner.made_up import failure, measurement, rollout

ORDER = Order(
    tasks=(Task(name="t", prompts=("a", "b", "c"), rewards=("point",)),),
    groups=1,
    samples_per_prompt=2,
    record=RecordSteps(2, 4),
    seed=1,
    fingerprint="f",
)


class World:
    """Simulated actors around the real intake; each `turn` one of them takes an order, or ends the one it holds."""

    def __init__(self, *, max_lag: int, groups: int, actors: int, chaos: random.Random, rates: dict[str, float]):
        broker = MemoryBroker("world")
        self.chaos, self.rates, self.version, self.max_lag = chaos, rates, 0, max_lag
        keys = broker.keys
        self.work = [broker.stream(keys.work, "actors", groups=("actors",)) for _ in range(actors)]
        self.held = [None] * actors
        self.rollouts = broker.stream(keys.rollouts, "learner")
        self.measurements = broker.stream(keys.measurements, "learner")
        slots, ledger = Slots(max_lag, groups), Ledger()
        assembler = Assembler(self.rollouts, self.measurements, broker.blobs(), epoch=0)
        spec = EvaluationSpec(name="h", prompts=("h",), samples_per_prompt=1, rewards=("point",))
        put = broker.stream(keys.work, groups=("actors",))
        streams = LearnerStreams(
            work=put,
            evaluation=put,
            rollouts=self.rollouts,
            measurements=self.measurements,
            reports=broker.stream(keys.reports),
            control=broker.stream(keys.control),
            blobs=broker.blobs(),
        )
        self.intake = Intake(
            Feeder(ORDER, put, slots, ledger, epoch=0),
            assembler,
            Evaluation((spec,), put, assembler, MemoryWeights(torch.float32), epoch=0, seed=0, fingerprint="f"),
            slots,
            ledger,
            streams,
            max_lag=max_lag,
            account=Account("learner", NullMeter()),
            wait=self.turn,
            stall_s=20.0,
        )

    def check(self) -> None:
        ledger, slots = self.intake.ledger, self.intake.slots
        assert ledger.balanced
        assert ledger.in_flight == slots.capacity - slots.free
        assert 0 <= slots.free <= slots.capacity

    def turn(self) -> None:
        self.check()
        which = self.chaos.randrange(len(self.work))
        if self.held[which] is None:
            taken = self.work[which].take(1, 0.0)
            self.held[which] = (taken[0], self.version) if taken else None
            return
        (delivery, version), self.held[which] = self.held[which], None
        item, luck = delivery.message, self.chaos.random()
        answers = {"group": item.group, "attempt": delivery.attempt, "epoch": item.epoch}
        if luck < self.rates["dies"] and delivery.attempt < 4:
            self.work[which].hand_back(delivery)
            return
        if luck < self.rates["dies"] + self.rates["fails"] and self.intake.ledger.endings[Ending.TRAINED]:
            self.measurements.put(failure(**answers))
        else:
            self.rollouts.put(rollout(**answers, samples=2, version=version))
            self.measurements.put(measurement(values=[0.0, 1.0], **answers))
            if luck > 1 - self.rates["answers twice"] and delivery.attempt < 4:
                self.work[which].hand_back(delivery)
                return
        self.work[which].ack(delivery)

    def train(self, iterations: int, groups: int) -> list[int]:
        """Lags of all trained groups."""
        lags, places = [], dict[int, int]()
        for iteration in range(iterations):
            found = self.intake.collect(groups, total=iterations * groups, version=self.version, stopping=lambda: False)
            numbers = [group.rollout.group for group in found]
            places |= {group: place for place, group in self.intake.feeder.open}
            assert [places[number] for number in numbers] == list(range(iteration * groups, (iteration + 1) * groups))
            lags += [self.version - group.rollout.version for group in found]
            self.version += 1
            for number in numbers:
                self.intake.end(number, Ending.TRAINED)
            self.intake.release(groups)
            self.check()
        return lags


@settings(max_examples=150)
@given(
    max_lag=st.integers(0, 3),
    groups=st.integers(1, 4),
    actors=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    dies=st.sampled_from([0.0, 0.2]),
    fails=st.sampled_from([0.0, 0.15]),
    twice=st.sampled_from([0.0, 0.2]),
)
def test_actors_that_fail_die_or_answer_twice_neither_raise_the_lag_nor_waste_a_group(
    max_lag, groups, actors, seed, dies, fails, twice
):
    rates = {"dies": dies, "fails": fails, "answers twice": twice}
    world = World(max_lag=max_lag, groups=groups, actors=actors, chaos=random.Random(seed), rates=rates)
    lags = world.train(iterations=8, groups=groups)
    ledger = world.intake.ledger
    assert max(lags) <= max_lag
    assert ledger.endings[Ending.TRAINED] == len(lags) == 8 * groups
    assert ledger.endings[Ending.STALE] == 0
    assert ledger.issued == 8 * groups + ledger.endings[Ending.FAILED]
    assert ledger.in_flight == 0


def test_the_bound_is_reached_and_not_only_kept():
    seen = Counter()
    for seed in range(10):
        calm = {"dies": 0.0, "fails": 0.0, "answers twice": 0.0}
        world = World(max_lag=2, groups=2, actors=6, chaos=random.Random(seed), rates=calm)
        seen.update(world.train(iterations=8, groups=2))
    assert set(seen) == {0, 1, 2}


def test_a_run_whose_every_group_fails_ends_with_the_reason():
    world = World(max_lag=0, groups=2, actors=1, chaos=random.Random(0), rates={})
    intake = world.intake

    def fail_all() -> None:
        for delivery in world.work[0].take(8, 0.0):
            world.measurements.put(failure(delivery.message.group, reason="out of memory"))
            world.work[0].ack(delivery)

    intake._wait = fail_all
    with pytest.raises(
        DroverError, match="4 groups failed and none succeeded in between; most often: sample: out of memory"
    ):
        intake.collect(2, total=20, version=0, stopping=lambda: False)
    assert intake.ledger.balanced and intake.ledger.endings[Ending.FAILED] == 4


def test_a_prompt_that_always_fails_ends_a_run_that_went_well_before():
    world = World(max_lag=0, groups=2, actors=1, chaos=random.Random(0), rates={})
    intake, poisoned = world.intake, 3  # place 3 is the second of the second iteration

    def answer() -> None:
        places = {group: place for place, group in intake.feeder.open}
        for delivery in world.work[0].take(8, 0.0):
            group = delivery.message.group
            if places[group] == poisoned:
                world.measurements.put(failure(group, reason="not finite"))
            else:
                world.rollouts.put(rollout(group, samples=2))
                world.measurements.put(measurement(group, [0.0, 1.0]))
            world.work[0].ack(delivery)

    intake._wait = answer
    found = intake.collect(2, total=20, version=0, stopping=lambda: False)
    for group in found:
        intake.end(group.rollout.group, Ending.TRAINED)
    intake.release(2)
    with pytest.raises(
        DroverError, match="20 groups failed and none succeeded in between; most often: sample: not finite"
    ):
        intake.collect(2, total=20, version=0, stopping=lambda: False)
    assert intake.ledger.balanced and intake.ledger.endings[Ending.TRAINED] == 2


def test_a_group_sampled_under_weights_older_than_the_bound_ends_stale_and_is_replaced():
    world = World(max_lag=1, groups=1, actors=1, chaos=random.Random(0), rates={})

    def answer() -> None:
        for delivery in world.work[0].take(8, 0.0):
            group = delivery.message.group
            world.rollouts.put(rollout(group, samples=2, version=0 if group == 0 else 2))
            world.measurements.put(measurement(group, [0.0, 1.0]))

    world.intake._wait = answer
    (found,) = world.intake.collect(1, total=1, version=2, stopping=lambda: False)
    assert found.rollout.group == 1
    assert world.intake.ledger.as_dict() == {
        "issued": 2, "in_flight": 1, "trained": 0, "empty": 0, "failed": 0, "stale": 1,
    }  # fmt: skip


def test_silence_is_an_error_that_says_what_is_missing():
    world = World(max_lag=0, groups=1, actors=1, chaos=random.Random(0), rates={})
    world.intake._wait, world.intake._stall_s = (lambda: None), 0.05
    with pytest.raises(DroverError, match="while the learner waits for samples"):
        world.intake.collect(1, total=1, version=0, stopping=lambda: False)
    world.rollouts.put(rollout(0, samples=2))
    with pytest.raises(DroverError, match="while the learner waits for a reward"):
        world.intake.collect(1, total=1, version=0, stopping=lambda: False)


def test_told_to_stop_the_intake_gives_up_waiting_and_knows_where_to_go_on():
    world = World(max_lag=0, groups=3, actors=1, chaos=random.Random(0), rates={})
    world.intake._wait, answers = (lambda: None), iter([False, True])
    assert world.intake.collect(3, total=9, version=0, stopping=lambda: next(answers)) is None
    assert world.intake.feeder.saved()["open"] == [(0, 0), (1, 1), (2, 2)]
    world.intake.end(0, Ending.TRAINED)
    assert world.intake.feeder.saved()["open"] == [(1, 1), (2, 2)]


@pytest.mark.parametrize(("max_lag", "groups", "capacity"), [(0, 1, 1), (0, 4, 4), (1, 4, 8), (3, 2, 8)])
def test_there_are_as_many_slots_as_the_bound_allows(max_lag, groups, capacity):
    slots = Slots(max_lag, groups)
    for _ in range(capacity):
        slots.take()
    with pytest.raises(AssertionError):
        slots.take()
    slots.release(capacity)
    with pytest.raises(AssertionError):
        slots.release()


def test_no_group_ends_twice_and_none_that_was_not_issued():
    ledger = Ledger()
    ledger.issue(3)
    with pytest.raises(KeyError):
        ledger.end(4, Ending.TRAINED)
    ledger.end(3, Ending.EMPTY)
    with pytest.raises(KeyError):
        ledger.end(3, Ending.TRAINED)
    assert ledger.as_dict() == {"issued": 1, "in_flight": 0, "trained": 0, "empty": 1, "failed": 0, "stale": 0}


def test_a_restored_ledger_counts_what_was_open_as_not_issued():
    ledger, again = Ledger(), Ledger()
    for group in range(5):
        ledger.issue(group)
    ledger.end(0, Ending.TRAINED)
    ledger.end(1, Ending.FAILED, "sample: x")
    again.restore(ledger.as_dict())
    assert again.balanced
    assert again.as_dict() == {"issued": 2, "in_flight": 0, "trained": 1, "empty": 0, "failed": 1, "stale": 0}
