import math
from collections import Counter

import numpy as np
import pytest

from common import tensors
from common.metrics import MASKED_SAMPLES, NullMeter
from common.protocols import Scores
from common.transport.memory import MemoryBroker
from common.types import Measurement, Purpose, RolloutGroup
from reward_servers.server import MAX_ATTEMPTS, RewardServer, RewardWiring

NAN = math.nan


class Brightness:
    """Mean of the picture's first channel. Prompts can ask for trouble; every call is noted."""

    def __init__(self) -> None:
        self.calls: list[int] = []  # samples in each
        self.seen: list[str] = []

    def __call__(self, prompts, media):
        self.calls.append(len(media))
        self.seen += prompts
        if "raise" in prompts:
            raise ValueError("cannot look at this")
        values = [float(image[..., 0].mean()) for image in media]
        if "short" in prompts:
            values.pop()
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


class Desk:
    """A reward server with its streams; `bring` puts a group of pictures, all of the given brightness."""

    def __init__(self, **options) -> None:
        self.broker, self.scorer, self.meter = MemoryBroker("rewards"), Brightness(), Meter()
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
            "media": refs["media"], "transitions": None, "worker": "actor-0", "sampling_s": 0.1,
        }  # fmt: skip
        each = len(levels) // len(prompts)
        self.rollouts.put(RolloutGroup(group=group, prompts=prompts, samples_per_prompt=each, **{**usual, **fields}))

    def answers(self) -> dict[int, Measurement]:
        while self.server.run_once(0.0):
            pass
        assert self.rollouts.backlog()[0] == 0, "everything taken is acknowledged"
        return {d.message.group: d.message for d in self.measurements.take(100, 0.0)}


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


def test_groups_that_wait_together_are_scored_in_one_call_up_to_the_limit():
    desk = Desk(batch_groups=3)
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


@pytest.mark.parametrize("poison", ["raise", "short"])
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


def test_told_to_stop_it_hands_back_what_it_has_not_scored(desk):
    desk.server.run(lambda: True)
    desk.bring(0, 10)
    assert desk.rollouts.backlog()[0] == 1
    other = desk.broker.stream(desk.broker.keys.rollouts, "reward:brightness")
    assert [d.attempt for d in other.take(5, 0.0)] == [1]
