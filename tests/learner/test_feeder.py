from collections import Counter

import pytest

from common.errors import ConfigError
from common.transport.memory import MemoryBroker
from common.types import Ending, Purpose
from learner.feeder import Feeder, Order, RecordSteps
from learner.slots import Ledger, Slots
from learner.sources import ShuffledPrompts

ORDER = Order(
    prompts=ShuffledPrompts(("a", "b", "c")), samples_per_prompt=8, record=RecordSteps(3, 7), seed=5, fingerprint="f"
)


def feeder(capacity: int = 4, next_group: int = 0):
    broker = MemoryBroker("feeder")
    work = broker.stream(broker.keys.work, "actors")
    slots, ledger = Slots(0, capacity), Ledger()
    return Feeder(ORDER, work, slots, ledger, epoch=9, next_group=next_group), work, slots, ledger


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
    feed, work, _, _ = feeder(capacity=1, next_group=17)
    feed.fill(100)
    (order,) = (delivery.message for delivery in work.take(1, 0.0))
    assert (order.epoch, order.group, order.draw, order.purpose) == (9, 17, 17, Purpose.TRAIN)
    assert order.prompts == (ORDER.prompts.at(5, 17),)
    assert order.record == ORDER.record.at(5, 17)
    assert (order.num_samples, order.seed, order.fingerprint) == (8, 5, "f")


def test_orders_from_a_number_on_are_the_same_as_in_a_run_that_came_there():
    whole, work, _, _ = feeder(capacity=10)
    whole.fill(10)
    resumed, rest, _, _ = feeder(capacity=4, next_group=6)
    resumed.fill(10)
    assert [d.message for d in rest.take(10, 0.0)] == [d.message for d in work.take(10, 0.0)][6:]


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
