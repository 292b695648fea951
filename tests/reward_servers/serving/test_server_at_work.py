"""The server in its threads, as it runs in a process of its own."""

import time
from threading import Event

import pytest

from drover.common.errors import TransportError
from tests.reward_servers.serving.desk import Desk, until


def test_at_work_it_answers_as_it_does_step_by_step():
    desk = Desk(max_batch=6)
    for group in range(20):
        desk.bring(group, group, group + 10, prompts=("nan" if group == 7 else "a",))
    with desk.working():
        answers = desk.said(20)
    assert {group: answer.values for group, answer in answers.items() if group != 7} == {
        group: (group, group + 10) for group in range(20) if group != 7
    }
    assert answers[7].reasons == ("nan", "nan") and desk.meter.masked == {"nan": 2}
    assert desk.rollouts.backlog()[0] == 0
    assert sum(desk.scorer.calls) == 40 and max(desk.scorer.calls) == 6


def test_while_it_scores_it_fetches_the_next_call_and_no_more():
    desk = Desk(max_batch=4)
    desk.scorer.gate.clear()
    for group in range(10):
        desk.bring(group, group, group)
    with desk.working():
        until(lambda: bool(desk.scorer.calls))
        first = desk.scorer.calls[0]
        until(lambda: desk.server._waiting.room() == 0)
        time.sleep(0.05)
        left = desk.other().take(100, 0.0)
        assert len(left) == 10 - (first + 4) // 2, "others of the pool find what it has not taken"
        desk.scorer.gate.set()
        assert len(desk.said(10 - len(left))) == 10 - len(left)
    assert desk.scorer.calls == [first] + [4] * (len(desk.scorer.calls) - 2) + desk.scorer.calls[-1:]


def test_answers_are_written_while_the_next_call_is_scored():
    desk = Desk(max_batch=2)
    wrote, put = Event(), desk.measurements.put

    def slowly(message):
        wrote.wait(5)
        put(message)

    desk.measurements.put = slowly
    for group in range(3):
        desk.bring(group, group, group)
    with desk.working():
        until(lambda: len(desk.scorer.calls) >= 3)
        assert desk.rollouts.backlog()[0] == 3, "nothing is acknowledged before its measurement is put"
        wrote.set()
        assert len(desk.said(3)) == 3
    assert desk.rollouts.backlog()[0] == 0


def test_groups_that_trickle_in_fill_a_call_until_the_first_has_waited_0_3_s():
    desk = Desk(max_batch=100, max_wait_s=0.3)
    with desk.working():
        started = time.monotonic()
        for group in range(4):
            desk.bring(group, 10, 20)
            time.sleep(0.02)
        answers = desk.said(4)
        waited_s = time.monotonic() - started
    assert desk.scorer.calls == [8] and len(answers) == 4
    assert 0.3 <= answers[0].waited_s < waited_s + 0.1 and answers[3].waited_s < answers[0].waited_s


def test_a_full_call_waits_for_nobody():
    desk = Desk(max_batch=4, max_wait_s=60.0)
    desk.bring(0, 1, 2)
    desk.bring(1, 3, 4)
    with desk.working():
        assert len(desk.said(2)) == 2


def test_told_to_stop_it_finishes_its_call_and_hands_back_the_rest():
    desk = Desk(max_batch=2)
    desk.scorer.gate.clear()
    for group in range(5):
        desk.bring(group, group, group)
    with desk.working():
        until(lambda: bool(desk.scorer.calls) and desk.server._waiting.room() == 0)
    assert list(desk.said(1)) == [0] and desk.scorer.calls == [2]
    left = desk.other().take(10, 0.0) + desk.other().take(10, 0.0)
    assert sorted(delivery.message.group for delivery in left) == [1, 2, 3, 4]


def test_told_to_stop_before_it_starts_it_scores_nothing():
    desk = Desk()
    desk.bring(0, 10)
    desk.server.run(lambda: True)
    assert desk.rollouts.backlog()[0] == 1 and desk.scorer.calls == []
    other = desk.other()
    assert len(other.take(5, 0.0)) == 1


@pytest.mark.parametrize("broken", ["take", "put"])
def test_a_transport_that_fails_in_any_thread_ends_it_with_that_error(broken):
    desk = Desk()

    def fail(*_):
        raise TransportError("Redis has no memory left")

    setattr(desk.rollouts if broken == "take" else desk.measurements, broken, fail)
    desk.bring(0, 10)
    with desk.working() as end, pytest.raises(TransportError, match="no memory"):
        end.result(timeout=5)


def test_its_time_is_accounted_for_from_one_thread():
    born, desk = time.perf_counter(), Desk()
    with desk.working():
        for group in range(5):
            desk.bring(group, 10, 20)
        desk.said(5)
        time.sleep(0.1)
    life = time.perf_counter() - born
    assert sum(desk.server.account.seconds().values()) == pytest.approx(life, abs=0.05)
    assert desk.server.spent["wait_data"] >= 0.1
