"""Every `Stream` keeps these promises, in memory and on Redis alike."""

import gc
import time
from collections.abc import Iterator
from threading import Thread

import pytest

from drover.common.errors import ConfigError
from drover.common.transport.broker import Broker
from drover.common.transport.codec import decode
from drover.common.transport.embedded import EmbeddedRedis
from drover.common.transport.memory import MemoryBroker
from drover.common.transport.redis_broker import RedisBroker
from drover.common.types import GroupFailed, Purpose, Stage

LEASE_S = 0.4
SOON_S = 2.0


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(max_memory_bytes=64 << 20) as server:
        yield server


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.service)])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    run = f"run-{time.time_ns()}"
    made: Broker = (
        MemoryBroker(run) if request.param == "memory" else RedisBroker(request.getfixturevalue("server").url, run)
    )
    yield made
    made.close()


def note(group: int) -> GroupFailed:
    return GroupFailed(
        epoch=0, group=group, attempt=1, purpose=Purpose.TRAIN, stage=Stage.SAMPLE, reason="latents are not finite"
    )


def actor(broker: Broker, group: str = "actors", **options):
    return broker.stream(broker.keys.work, group, lease_s=LEASE_S, **options)


def groups_of(deliveries) -> list[int]:
    return [delivery.message.group for delivery in deliveries]


def test_messages_arrive_whole_and_in_the_order_they_were_put(broker):
    stream = actor(broker)
    for group in range(5):
        stream.put(note(group))
    first, rest = stream.take(2, 0.0), stream.take(10, 0.0)
    assert [delivery.message for delivery in first + rest] == [note(group) for group in range(5)]
    assert {delivery.attempt for delivery in first + rest} == {1}


def test_a_message_put_before_its_group_exists_is_not_lost(broker):
    broker.stream(broker.keys.work).put(note(7))
    assert groups_of(actor(broker).take(1, SOON_S)) == [7]


def test_each_message_goes_to_one_consumer_of_a_group(broker):
    one, other = actor(broker), actor(broker)
    for group in range(4):
        one.put(note(group))
    assert groups_of(one.take(2, 0.0)) == [0, 1]
    assert groups_of(other.take(4, 0.0)) == [2, 3]
    assert one.take(1, 0.0) == []


def test_every_group_sees_every_message(broker):
    names = ("reward:a", "reward:b", "learner")
    streams = [actor(broker, name, groups=names) for name in names]
    for group in range(3):
        streams[0].put(note(group))
    assert [groups_of(stream.take(9, SOON_S)) for stream in streams] == [[0, 1, 2]] * 3


def test_take_waits_for_the_first_message_and_no_longer_than_asked(broker):
    stream = actor(broker)
    began_s = time.monotonic()
    assert stream.take(1, 0.3) == []
    assert 0.29 <= time.monotonic() - began_s < 1.5

    late = Thread(target=lambda: (time.sleep(0.2), broker.stream(broker.keys.work).put(note(1))))
    late.start()
    began_s = time.monotonic()
    assert groups_of(stream.take(1, 20.0)) == [1]
    assert time.monotonic() - began_s < 3.0
    late.join()


def test_a_dead_consumers_messages_go_to_another_after_the_lease_with_attempts_counted(broker):
    survivor = actor(broker)
    for expected_attempt in (1, 2, 3):
        if expected_attempt == 1:
            survivor.put(note(5))
        doomed = actor(broker)
        (delivery,) = doomed.take(1, SOON_S)
        assert (delivery.message.group, delivery.attempt) == (5, expected_attempt)
        assert survivor.take(1, 0.0) == []
        del doomed
        gc.collect()
    (delivery,) = survivor.take(1, SOON_S)
    assert (delivery.message.group, delivery.attempt) == (5, 4)


def test_a_slow_but_living_consumer_keeps_its_message_beyond_the_lease(broker):
    slow, other = actor(broker), actor(broker)
    slow.put(note(1))
    (delivery,) = slow.take(1, SOON_S)
    assert other.take(1, 3 * LEASE_S) == []
    slow.ack(delivery)
    assert other.backlog() == (0, 0.0)


def test_a_message_handed_back_is_delivered_again_at_once_as_another_attempt(broker):
    one, other = actor(broker), broker.stream(broker.keys.work, "actors", lease_s=30.0)
    one.put(note(3))
    (delivery,) = one.take(1, SOON_S)
    one.hand_back(delivery)
    (again,) = other.take(1, SOON_S)
    assert (again.message, again.attempt) == (note(3), 2)


def test_handing_back_what_another_has_reclaimed_leaves_it_alone(broker):
    one, other, third = actor(broker), actor(broker), actor(broker)
    one.put(note(3))
    (delivery,) = one.take(1, SOON_S)
    one.hand_back(delivery)
    assert len(other.take(1, SOON_S)) == 1
    one.hand_back(delivery)
    assert third.take(1, 0.3) == []


def test_closing_hands_back_what_was_taken(broker):
    leaving, staying = actor(broker), broker.stream(broker.keys.work, "actors", lease_s=30.0)
    for group in range(3):
        leaving.put(note(group))
    done, *_ = leaving.take(3, SOON_S)
    leaving.ack(done)
    leaving.close()
    again = staying.take(9, SOON_S)
    assert groups_of(again) == [1, 2]
    assert [delivery.attempt for delivery in again] == [2, 2]


def test_acknowledging_twice_is_harmless_and_final(broker):
    stream = actor(broker)
    stream.put(note(1))
    (delivery,) = stream.take(1, SOON_S)
    stream.ack(delivery)
    stream.ack(delivery)
    assert actor(broker).take(1, 2 * LEASE_S) == []


def test_backlog_counts_what_is_not_acknowledged_and_ages_the_oldest(broker):
    stream = actor(broker)
    assert stream.backlog() == (0, 0.0)
    stream.put(note(0))
    time.sleep(0.3)
    for group in (1, 2):
        stream.put(note(group))
    count, age_s = stream.backlog()
    assert count == 3 and 0.29 <= age_s < 2.0
    (oldest,) = stream.take(1, 0.0)
    assert stream.backlog()[0] == 3
    stream.ack(oldest)
    count, age_s = stream.backlog()
    assert count == 2 and age_s < 0.29


def test_an_entry_is_kept_for_the_slowest_group_and_gone_after_it(broker):
    fast, slow = (actor(broker, name, groups=("fast", "slow")) for name in ("fast", "slow"))
    for group in range(20):
        fast.put(note(group))
    for delivery in fast.take(20, SOON_S):
        fast.ack(delivery)
    assert fast.backlog()[0] == 0 and slow.backlog()[0] == 20

    taken = slow.take(20, SOON_S)
    assert groups_of(taken) == list(range(20))
    for delivery in taken[1:]:
        slow.ack(delivery)
    # A consumer group that joins late sees exactly the entries still stored, and its ack is waited for like any other.
    auditor = actor(broker, "auditor")
    assert auditor.backlog()[0] == 1
    slow.ack(taken[0])
    assert auditor.backlog()[0] == 1
    auditor.ack(auditor.take(1, SOON_S)[0])
    assert actor(broker, "late auditor").backlog()[0] == 0


def test_a_buried_message_is_among_the_dead_with_its_reason_and_not_delivered_again(broker):
    stream = actor(broker)
    stream.put(note(8))
    (delivery,) = stream.take(1, SOON_S)
    stream.bury(delivery, "scored three times, died three times")
    (letter,) = broker.dead_letters()
    assert decode(letter.payload) == note(8)
    assert (letter.reason, letter.stream, letter.group, letter.attempt) == (
        "scored three times, died three times",
        broker.keys.work,
        "actors",
        1,
    )
    assert stream.backlog() == (0, 0.0)


def test_clearing_forgets_entries_and_deliveries_but_not_what_comes_next(broker):
    stream, other = actor(broker), actor(broker)
    for group in range(4):
        stream.put(note(group))
    old = stream.take(2, SOON_S)
    stream.clear()
    assert stream.backlog() == (0, 0.0)
    assert other.take(9, 2 * LEASE_S) == []
    stream.put(note(9))
    stream.ack(old[0])  # taken before the clearing; must not touch the new entry
    assert groups_of(other.take(9, SOON_S)) == [9]


def test_clearing_drops_groups_that_nobody_declares_any_more(broker):
    actor(broker, "reward:retired")
    stream = actor(broker, "learner", groups=("learner",))
    stream.clear()
    stream.put(note(1))
    stream.ack(stream.take(1, SOON_S)[0])
    assert actor(broker, "auditor").backlog()[0] == 0


def test_concurrent_consumers_share_a_stream_without_loss_or_repetition(broker):
    producer, seen = actor(broker), []
    for group in range(60):
        producer.put(note(group))

    def consume() -> None:
        stream = broker.stream(broker.keys.work, "actors")
        while deliveries := stream.take(3, 0.2):
            for delivery in deliveries:
                seen.append(delivery.message.group)
                stream.ack(delivery)

    threads = [Thread(target=consume) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(60))
    assert producer.backlog() == (0, 0.0)


def test_outstanding_is_what_some_group_has_not_acknowledged(broker):
    one, other = (actor(broker, name, groups=("one", "other")) for name in ("one", "other"))
    assert one.outstanding() == 0
    one.put(note(1))
    one.put(note(2))
    assert broker.stream(broker.keys.work).outstanding() == 2
    for delivery in one.take(2, SOON_S):
        one.ack(delivery)
    assert one.outstanding() == 2
    for delivery in other.take(2, SOON_S):
        other.ack(delivery)
    assert one.outstanding() == 0


def test_unacknowledged_messages_are_seen_by_whoever_asks_and_stay_for_their_readers(broker):
    one = actor(broker)
    for group in range(3):
        one.put(note(group))
    one.ack(one.take(1, SOON_S)[0])
    assert groups_of(one.take(1, SOON_S)) == [1]
    seen = broker.stream(broker.keys.work).unacknowledged()
    assert [message.group for message in seen] == [1, 2]
    assert groups_of(one.take(5, SOON_S)) == [2] and one.outstanding() == 2


def test_a_stream_without_a_group_can_put_and_says_why_it_cannot_take(broker):
    stream = broker.stream(broker.keys.work)
    stream.put(note(1))
    with pytest.raises(ConfigError, match="consumer group"):
        stream.take(1, 0.0)
