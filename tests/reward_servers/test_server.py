import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

import numpy as np
import pytest

from common import tensors
from common.errors import ConfigError, TransportError
from common.metrics import MASKED_SAMPLES, NullMeter
from common.protocols import Scores
from common.transport.memory import MemoryBroker
from common.types import Measurement, Purpose, RolloutGroup
from reward_servers.scoring import MAX_HANGING
from reward_servers.server import MAX_ATTEMPTS, RewardServer, RewardWiring

NAN = math.nan


class Brightness:
    """Mean of the picture's first channel. Prompts can ask for trouble; every call is noted."""

    def __init__(self) -> None:
        self.calls: list[int] = []  # samples in each
        self.seen: list[str] = []
        self.gate = Event()  # closed, it holds calls up; "hang" waits for `wake`
        self.gate.set()
        self.wake = Event()

    def __call__(self, prompts, media):
        self.calls.append(len(media))
        self.seen += prompts
        assert self.gate.wait(10)
        if "hang" in prompts:
            assert self.wake.wait(10)
        if "raise" in prompts:
            raise ValueError("cannot look at this")
        values = [float(image[..., 0].mean()) for image in media]
        if "short" in prompts:
            values.pop()
        if "words" in prompts:
            return Scores(["bright"] * len(values))
        if "few reasons" in prompts:
            return Scores(values, [""])
        broken = {"nan": NAN, "infinite": math.inf}
        values = [broken.get(prompt, value) for prompt, value in zip(prompts, values, strict=False)]
        reasons = ["refused" if prompt == "refused" else "" for prompt in prompts]
        return Scores(values, reasons, [0.5] * len(values) if "unsure" in prompts else None)


class Meter(NullMeter):
    def __init__(self) -> None:
        self.masked: Counter[str] = Counter()

    def add(self, metric, value=1.0, **labels):
        super().add(metric, value, **labels)
        if metric is MASKED_SAMPLES:
            self.masked[labels["reason"]] += value


class Spread:
    """The difference between a picture and the darkest of its set."""

    def __init__(self) -> None:
        self.sets: list[list[slice]] = []

    def score_sets(self, prompts, media, sets):
        self.sets.append(list(sets))
        level = media[:, 0, 0, 0].astype(float)
        values = np.concatenate([level[rows] - level[rows].min() for rows in sets])
        assert [prompts[rows.start : rows.stop] for rows in sets] == [
            [prompts[r.start]] * (r.stop - r.start) for r in sets
        ]
        return Scores(values)


class Desk:
    """A reward server with its streams; `bring` puts a group of pictures, all of the given brightness."""

    def __init__(self, scorer=None, **options) -> None:
        self.broker, self.scorer, self.meter = MemoryBroker("rewards"), scorer or Brightness(), Meter()
        keys = self.broker.keys
        self.rollouts = self.broker.stream(keys.rollouts, "reward:brightness")
        self.measurements = self.broker.stream(keys.measurements, "learner")
        wiring = RewardWiring(
            rollouts=self.rollouts, measurements=self.measurements, blobs=self.broker.blobs(), meter=self.meter
        )
        self.server = RewardServer("reward-0", "brightness", self.scorer, wiring, **options)

    def bring(self, group: int, *levels: int, prompts=("a",), size=(2, 2), stored=True, **fields) -> None:
        media = np.stack([np.full((*size, 3), level, np.uint8) for level in levels])
        parts, refs = tensors.pack(f"{group}/media", {"media": media})
        if stored:
            self.broker.blobs().put(f"{group}/media", parts)
        usual = {
            "epoch": 4, "attempt": 1, "purpose": Purpose.TRAIN, "version": 0, "fingerprint": "f", "x0": None,
            "task": "t", "rewards": ("brightness",),
            "media": refs["media"], "transitions": None, "worker": "actor-0", "sampling_s": 0.1,
        }  # fmt: skip
        each = len(levels) // len(prompts)
        self.rollouts.put(RolloutGroup(group=group, prompts=prompts, samples_per_prompt=each, **{**usual, **fields}))

    def answers(self) -> dict[int, Measurement]:
        while self.server.run_once(0.0):
            pass
        assert self.rollouts.backlog()[0] == 0, "everything taken is acknowledged"
        return {d.message.group: d.message for d in self.measurements.take(100, 0.0)}

    @contextmanager
    def working(self) -> Iterator[Future[None]]:
        """The server runs on a thread of its own until the block ends."""
        stop = Event()
        with ThreadPoolExecutor(1) as thread:
            end = thread.submit(self.server.run, stop.is_set)
            try:
                yield end
            finally:
                stop.set()
                self.scorer.gate.set()

    def said(self, count: int) -> dict[int, Measurement]:
        """The next measurements, waited for, of whoever is at work."""
        found: dict[int, Measurement] = {}
        until(lambda: len(self._said(found)) >= count)
        return found

    def _said(self, found: dict[int, Measurement]) -> dict[int, Measurement]:
        for delivery in self.measurements.take(100, 0.0):
            found[delivery.message.group] = delivery.message
        return found

    def other(self):
        """Another consumer of the same pool."""
        return self.broker.stream(self.broker.keys.rollouts, "reward:brightness")


def until(happened: Callable[[], bool], seconds: float = 5.0) -> None:
    ends = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < ends, "it never happened"
        time.sleep(0.002)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_group_is_measured_sample_by_sample(desk):
    desk.bring(3, 10, 20, 30, 40, prompts=("a", "b"), attempt=2, purpose=Purpose.EVAL)
    answer = desk.answers()[3]
    assert (answer.epoch, answer.attempt, answer.purpose, answer.reward) == (4, 2, Purpose.EVAL, "brightness")
    assert answer.values == (10, 20, 30, 40)
    assert answer.valid == (True,) * 4 and answer.reasons == ("",) * 4 and answer.uncertainty is None
    assert desk.scorer.seen == ["a", "a", "b", "b"]
    assert answer.scoring_s >= 0 and answer.waited_s >= 0 and answer.worker == "reward-0"


def test_groups_that_wait_together_are_scored_in_one_call_of_so_many_samples():
    desk = Desk(max_batch=6)
    for group in range(5):
        desk.bring(group, group, group + 10)
    answers = desk.answers()
    assert desk.scorer.calls == [6, 4]
    assert {group: answer.values for group, answer in answers.items()} == {g: (g, g + 10) for g in range(5)}


@pytest.mark.parametrize(("prompt", "reason"), [("nan", "nan"), ("infinite", "nan"), ("refused", "refused")])
def test_a_value_that_is_no_number_or_was_refused_is_masked_with_its_reason(desk, prompt, reason):
    desk.bring(3, 10, 20, 30, prompts=("a", prompt, "b"))
    answer = desk.answers()[3]
    assert answer.valid == (True, False, True)
    assert answer.reasons == ("", reason, "")
    assert (answer.values[0], answer.values[2]) == (10, 30)
    assert desk.meter.masked == {reason: 1}


def test_uncertainty_goes_to_the_sample_it_belongs_to(desk):
    desk.bring(0, 1, 2, prompts=("unsure",))
    desk.bring(1, 3)
    answers = desk.answers()
    assert answers[0].uncertainty == (0.5, 0.5) and answers[1].uncertainty == (0.5,)


@pytest.mark.parametrize("poison", ["raise", "short", "words", "few reasons"])
def test_only_the_group_that_makes_a_reward_fail_is_masked(desk, poison):
    for group, prompt in enumerate(("a", "b", poison, "c")):
        desk.bring(group, 10, 20, prompts=(prompt,))
    answers = desk.answers()
    assert sorted(answers) == [0, 1, 2, 3]
    assert [answers[group].valid for group in range(4)] == [(True,) * 2, (True,) * 2, (False,) * 2, (True,) * 2]
    assert answers[2].reasons == ("error", "error") and all(math.isnan(v) for v in answers[2].values)
    assert desk.scorer.calls == [8, 2, 2, 2, 2]
    assert desk.meter.masked == {"error": 2}


def test_a_group_whose_media_are_gone_has_ended_elsewhere_and_is_skipped(desk):
    desk.bring(0, 10)
    desk.bring(1, 20, stored=False)
    assert list(desk.answers()) == [0]


def test_a_group_without_media_is_skipped(desk):
    desk.bring(0, 10, media=None)
    assert desk.answers() == {} and desk.scorer.calls == []


def test_a_group_that_killed_its_servers_too_often_is_masked_unscored(desk):
    desk.bring(0, 10, 20)
    for _ in range(MAX_ATTEMPTS):
        victim = desk.broker.stream(desk.broker.keys.rollouts, "reward:brightness")
        victim.hand_back(victim.take(1, 0.0)[0])
    answer = desk.answers()[0]
    assert answer.reasons == ("error", "error") and desk.scorer.calls == []


def test_it_spoils_no_group_that_came_beside_it(desk):
    desk.bring(0, 10, 20)
    for _ in range(MAX_ATTEMPTS):
        victim = desk.broker.stream(desk.broker.keys.rollouts, "reward:brightness")
        victim.hand_back(victim.take(1, 0.0)[0])
    desk.bring(1, 30)
    answers = desk.answers()
    assert answers[0].valid == (False, False) and answers[1].values == (30,)


def test_pictures_of_different_sizes_are_scored_apart(desk):
    desk.bring(0, 10, size=(2, 2))
    desk.bring(1, 20, size=(4, 2))
    answers = desk.answers()
    assert (answers[0].values, answers[1].values) == ((10,), (20,))
    assert desk.scorer.calls == [1, 1]


def test_with_nothing_to_do_it_says_so(desk):
    assert desk.server.run_once(0.0) is False


def test_a_group_that_names_other_rewards_is_left_to_them(desk):
    desk.bring(0, 10, rewards=("colour", "truth"))
    desk.bring(1, 20, rewards=("colour", "brightness"))
    assert desk.server.run_once(0.0) is True
    assert list(desk.answers()) == [1] and desk.scorer.calls == [1]


def test_a_larger_group_than_a_call_takes_is_scored_alone_and_whole():
    desk = Desk(max_batch=3)
    for group, levels in enumerate([(1,), (2, 3), (4, 5, 6, 7), (8,)]):
        desk.bring(group, *levels)
    assert desk.answers()[2].values == (4, 5, 6, 7)
    assert desk.scorer.calls == [3, 4, 1]


def test_damaged_media_mask_their_group_alone(desk):
    desk.bring(0, 10)
    desk.bring(1, 20, 30)
    desk.broker.blobs().put("1/media", [b"12345"])
    desk.bring(2, 40)
    message = desk.answers()
    assert sorted(message) == [0, 2], "its bytes are gone, as if it had ended elsewhere"
    assert (message[0].values, message[2].values) == ((10,), (40,))


def test_a_set_scorer_sees_whole_sets_of_every_group_in_one_call():
    desk = Desk(Spread())
    desk.bring(0, 10, 30, 25, 20, prompts=("a", "b"))
    desk.bring(1, 7, 5, 6)
    answers = desk.answers()
    assert desk.scorer.sets == [[slice(0, 2), slice(2, 4), slice(4, 7)]]
    assert answers[0].values == (0, 20, 5, 0) and answers[1].values == (2, 0, 1)


@pytest.mark.parametrize("wrong", [{"max_batch": 0}, {"max_wait_s": -1.0}, {"deadline_s": 0.0}])
def test_an_impossible_option_is_refused(wrong):
    with pytest.raises(ConfigError, match="max_batch >= 1"):
        Desk(**wrong)


# --------------------------------------------------------------------------------- a scorer that hangs


def test_a_call_that_hangs_is_left_behind_and_masked_with_its_group_alone():
    desk = Desk(deadline_s=0.1)
    for group, prompt in enumerate(("a", "hang", "b")):
        desk.bring(group, 10, 20, prompts=(prompt,))
    answers = desk.answers()
    assert [answers[group].valid for group in range(3)] == [(True,) * 2, (False,) * 2, (True,) * 2]
    assert answers[1].reasons == ("timeout", "timeout") and desk.meter.masked == {"timeout": 2}
    assert "0.1 s" in desk.server.trouble
    desk.scorer.wake.set()


def test_a_scorer_that_always_hangs_is_called_only_so_often_and_again_once_it_answers():
    desk = Desk(deadline_s=0.03)
    for group in range(MAX_HANGING + 3):
        desk.bring(group, 10, prompts=("hang",))
        desk.server.run_once(0.0)
    answers = desk.answers()
    assert {answer.reasons for answer in answers.values()} == {("timeout",)} and len(answers) == MAX_HANGING + 3
    assert len(desk.scorer.calls) == MAX_HANGING
    desk.scorer.wake.set()
    desk.bring(100, 50)
    until(lambda: desk.server._call._free._value == MAX_HANGING)
    assert desk.answers()[100].values == (50,)


def test_a_scorers_own_time_out_is_an_error_like_any_other():
    class Impatient:
        def __call__(self, prompts, media):
            raise TimeoutError("the judge is away")

    desk = Desk(Impatient(), deadline_s=5.0)
    desk.bring(0, 10)
    assert desk.answers()[0].reasons == ("error",) and "the judge is away" in desk.server.trouble


# ------------------------------------------------------------------------------------- at work, in threads


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


def test_what_trickles_in_fills_a_call_until_its_first_has_waited_long_enough():
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


def test_told_to_stop_before_it_starts_it_scores_nothing(desk):
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


def test_its_time_is_accounted_for_from_one_thread(desk):
    born = time.perf_counter()
    with desk.working():
        for group in range(5):
            desk.bring(group, 10, 20)
        desk.said(5)
        time.sleep(0.1)
    life = time.perf_counter() - born
    assert sum(desk.server.account.seconds().values()) == pytest.approx(life, abs=0.05)
    assert desk.server.spent["wait_data"] >= 0.1


# ------------------------------------------------------------------------ groups that kill their server


def test_one_group_that_kills_every_server_takes_none_of_its_fellows_along():
    class Killed(BaseException):
        """The process is gone: nothing of the server's runs any more."""

    class Fragile(Brightness):
        def __call__(self, prompts, media):
            if "kill" in prompts:
                raise Killed
            return super().__call__(prompts, media)

    desk, answers = Desk(), {}
    for group in range(6):
        desk.bring(group, group, prompts=("kill" if group == 3 else "a",))
    for life in range(MAX_ATTEMPTS + 2):
        rollouts = desk.other()
        wiring = RewardWiring(
            rollouts=rollouts, measurements=desk.measurements, blobs=desk.broker.blobs(), meter=desk.meter
        )
        server = RewardServer(f"reward-{life}", "brightness", Fragile(), wiring)
        try:
            while server.run_once(0.0):
                pass
        except Killed:
            rollouts.close()  # its leases run out
        desk._said(answers)
    assert sorted(answers) == list(range(6))
    assert [group for group, answer in answers.items() if not all(answer.valid)] == [3]
