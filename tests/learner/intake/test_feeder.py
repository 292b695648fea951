import json
from collections import Counter
from dataclasses import replace

import pytest

from drover.common.errors import ConfigError
from drover.common.transport.memory import MemoryBroker
from drover.common.types import Ending, Purpose
from drover.learner.intake.feeder import Feeder
from drover.learner.intake.slots import Ledger, Slots
from drover.learner.intake.tasks import Order, RecordSteps, Task

ABC = Task(name="t", prompts=("a", "b", "c"), rewards=("r",))
ORDER = Order(tasks=(ABC,), groups=2, samples_per_prompt=8, record=RecordSteps(3, 7), seed=5, fingerprint="f")


def feeder(capacity: int = 4, order: Order = ORDER):
    broker = MemoryBroker("feeder")
    work = broker.stream(broker.keys.work, "actors")
    slots, ledger = Slots(0, capacity), Ledger()
    return Feeder(order, work, slots, ledger, epoch=9), work, slots, ledger


def issued(work) -> list:
    return [delivery.message for delivery in work.take(1000, 0.0)]


def test_it_issues_as_many_orders_as_slots_are_free_and_no_more():
    feed, work, slots, ledger = feeder(capacity=4)
    feed.fill(100)
    feed.fill(100)
    orders = [delivery.message for delivery in work.take(100, 0.0)]
    assert [order.group for order in orders] == [0, 1, 2, 3]
    assert (slots.free, ledger.issued, ledger.in_flight) == (0, 4, 4)
    ledger.end(0, Ending.TRAINED)
    slots.release()
    feed.fill(100)
    assert [delivery.message.group for delivery in work.take(100, 0.0)] == [4]


def test_it_never_issues_past_the_budget():
    feed, work, slots, _ = feeder(capacity=8)
    feed.fill(3)
    assert len(work.take(100, 0.0)) == 3
    assert slots.free == 5


def test_an_order_says_everything_an_actor_needs():
    feed, work, _, _ = feeder(capacity=18)
    feed.fill(100)
    order = issued(work)[17]
    assert (order.epoch, order.group, order.draw, order.purpose) == (9, 17, 17, Purpose.TRAIN)
    assert (order.task, order.rewards, order.prompts) == ("t", ("r",), (ORDER.prompt(17),))
    assert order.record == ORDER.record.at(5, 17)
    assert (order.num_samples, order.seed, order.fingerprint) == (8, 5, "f")


def test_a_lost_group_is_ordered_again_in_its_place_under_a_new_number():
    feed, work, slots, ledger = feeder(capacity=4)
    feed.fill(6)
    feed.end(2, lost=True)
    ledger.end(2, Ending.FAILED)
    slots.release()
    assert feed.fill(6) == [4]
    again = issued(work)[-1]
    assert feed.open == [(0, 0), (1, 1), (2, 4), (3, 3)]
    assert again.prompts == (ORDER.prompt(2),) and again.draw == 4


def test_a_restored_feeder_orders_what_was_open_and_then_what_comes_next():
    """The orders are those of a run that was not interrupted, also when groups were lost on the way."""
    feed, work, slots, ledger = feeder(capacity=6)
    feed.fill(20)
    for group, lost in ((0, False), (1, True), (2, False), (4, True)):
        feed.end(group, lost=lost)
        ledger.end(group, Ending.FAILED if lost else Ending.TRAINED)
        slots.release()
    feed.fill(20)
    saved = json.loads(json.dumps(feed.saved()))
    before = {order.group: order for order in issued(work)}
    resumed, rest, free, _ = feeder(capacity=6)
    resumed.restore(saved)
    assert json.loads(json.dumps(resumed.saved())) == saved
    resumed.fill(20)
    assert {order.group: order for order in issued(rest)} == {g: before[g] for _, g in feed.open}
    for one, its in ((feed, slots), (resumed, free)):
        one.end(3, lost=False)
        its.release()
        one.fill(20)
    assert issued(work) == issued(rest) != []


def test_tasks_take_turns_an_iteration_each_and_go_through_their_own_prompts():
    one, other = (Task(name=n, prompts=[f"{n}{i}" for i in range(4)], rewards=(n,)) for n in "xy")
    feed, work, _, _ = feeder(capacity=100, order=replace(ORDER, tasks=(one, other)))
    feed.fill(16)
    orders = issued(work)
    assert [order.task for order in orders] == ["x", "x", "y", "y"] * 4
    assert [order.rewards for order in orders[:4]] == [("x",), ("x",), ("y",), ("y",)]
    for name in "xy":
        drawn = [order.prompts[0] for order in orders if order.task == name]
        assert sorted(drawn[:4]) == sorted(drawn[4:]) == [f"{name}{i}" for i in range(4)]


def test_shared_steps_are_the_same_within_an_iteration_and_differ_between_iterations():
    order = replace(ORDER, groups=8, record=RecordSteps(5, 50, shared=True))
    steps = [order.steps(place, place) for place in range(80)]
    assert all(len(set(steps[i : i + 8])) == 1 for i in range(0, 80, 8))
    assert len(set(steps)) == 10


def test_recorded_steps_are_distinct_rising_and_among_the_first():
    record, drawn = RecordSteps(count=3, first=7), Counter()
    for group in range(700):
        steps = record.at(0, group)
        assert len(set(steps)) == 3 and list(steps) == sorted(steps)
        drawn.update(steps)
    assert set(drawn) == set(range(7))
    assert all(240 < count < 360 for count in drawn.values())  # 300 each on average, 4.5 standard deviations


@pytest.mark.parametrize(("count", "first"), [(0, 5), (6, 5), (-1, 5), (1, 0)])
def test_steps_that_are_not_there_cannot_be_recorded(count, first):
    with pytest.raises(ConfigError, match=f"cannot record {count} of the first {first} steps"):
        RecordSteps(count, first)
