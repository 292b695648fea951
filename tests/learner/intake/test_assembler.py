import math

import numpy as np
import pytest

from drover.common import tensors
from drover.common.errors import BlobMissing
from drover.common.transport.memory import MemoryBroker
from drover.common.types import Purpose, TensorRef
from drover.learner.intake.assembler import Assembler
from tests.learner.made_up import failure, measurement, rollout

TRAIN = Purpose.TRAIN
EPOCH = 7


class Desk:
    """An assembler with its streams, to which its methods bring messages and the blobs that these name."""

    def __init__(self, *rewards: str) -> None:
        broker = MemoryBroker("assembler")
        self.blobs = broker.blobs()
        self.rollouts = broker.stream(broker.keys.rollouts, "learner")
        self.measurements = broker.stream(broker.keys.measurements, "learner")
        self.rewards = rewards or ("point",)
        self.assembler = Assembler(self.rollouts, self.measurements, self.blobs, epoch=EPOCH)

    def sampled(self, group: int, **fields) -> None:
        message = rollout(group, **{"epoch": EPOCH, "rewards": self.rewards, **fields})
        for blob in message.blobs:
            self.blobs.put(blob, [b"x"])
        self.rollouts.put(message)
        self.assembler.poll(0.0)

    def scored(self, group: int, values=(1.0, 2.0, 3.0, 4.0), **fields) -> None:
        self.measurements.put(measurement(group, values, **{"epoch": EPOCH, **fields}))
        self.assembler.poll(0.0)

    def kept(self, blob: str) -> bool:
        try:
            return self.blobs.get(blob) == b"x"
        except BlobMissing:
            return False


def latents(blob: str) -> TensorRef:
    return TensorRef(blob=blob, dtype="float32", shape=(4, 1))


@pytest.fixture
def desk() -> Desk:
    desk = Desk()
    desk.assembler.expect((TRAIN, 3))
    return desk


def test_a_group_is_complete_when_every_reward_has_answered():
    desk, key = Desk("point", "size"), (TRAIN, 3)
    desk.assembler.expect(key)
    desk.sampled(3)
    desk.scored(3)
    assert key not in desk.assembler.complete and desk.assembler.sampled(key)
    desk.scored(3, (5, 6, 7, 8), reward="size")
    group = desk.assembler.complete[key]
    assert group.rewards["point"].values.tolist() == [1, 2, 3, 4]
    assert group.rewards["size"].values.tolist() == [5, 6, 7, 8]


def test_a_measurement_may_come_before_its_rollout(desk):
    desk.scored(3)
    assert not desk.assembler.sampled((TRAIN, 3)) and not desk.assembler.complete
    desk.sampled(3)
    assert desk.assembler.complete[(TRAIN, 3)].rollout.attempt == 1


def test_of_two_attempts_the_first_complete_one_wins_and_the_others_blob_is_dropped(desk):
    desk.sampled(3, attempt=1, latents=latents("3.1/x0"))
    desk.sampled(3, attempt=2, latents=latents("3.2/x0"))
    desk.scored(3, (9, 9, 9, 9), attempt=2)
    group = desk.assembler.complete[(TRAIN, 3)]
    assert group.rollout.attempt == 2 and group.rewards["point"].values.tolist() == [9, 9, 9, 9]
    assert (desk.kept("3.1/x0"), desk.kept("3.2/x0")) == (False, True)


def test_attempts_are_never_mixed():
    desk, key = Desk("point", "size"), (TRAIN, 3)
    desk.assembler.expect(key)
    desk.sampled(3, attempt=1)
    desk.scored(3, attempt=1)
    desk.scored(3, reward="size", attempt=2)
    assert key not in desk.assembler.complete
    desk.sampled(3, attempt=2)
    assert key not in desk.assembler.complete
    desk.scored(3, attempt=2)
    assert desk.assembler.complete[key].rollout.attempt == 2


def test_an_answer_to_an_earlier_epoch_is_forgotten_with_its_blobs(desk):
    desk.sampled(3, epoch=EPOCH - 1)
    desk.scored(3, epoch=EPOCH - 1)
    assert not desk.assembler.complete and not desk.assembler.sampled((TRAIN, 3))
    assert not desk.kept("3.1")


def test_an_unexpected_group_is_forgotten_with_its_blobs(desk):
    desk.sampled(4)
    desk.scored(4)
    assert not desk.assembler.complete and not desk.kept("4.1")


def test_a_late_duplicate_of_a_group_that_ended_is_dropped(desk):
    desk.sampled(3)
    desk.scored(3)
    desk.assembler.finish((TRAIN, 3))
    assert not desk.kept("3.1")
    desk.sampled(3, attempt=2)
    desk.scored(3, attempt=2)
    assert not desk.assembler.complete and not desk.kept("3.2")


def test_a_late_duplicate_of_a_group_that_waits_for_training_is_dropped_and_changes_nothing(desk):
    desk.sampled(3, latents=latents("3.1/x0"))
    desk.scored(3)
    desk.sampled(3, attempt=2, latents=latents("3.2/x0"))
    desk.scored(3, (0, 0, 0, 0), attempt=2)
    assert desk.assembler.complete[(TRAIN, 3)].rewards["point"].values.tolist() == [1, 2, 3, 4]
    assert (desk.kept("3.1/x0"), desk.kept("3.2/x0")) == (True, False)


def test_a_rollout_that_comes_twice_does_not_take_the_blobs_of_the_group_that_waits_for_training(desk):
    desk.sampled(3, latents=latents("3.1/x0"))
    desk.scored(3)
    desk.sampled(3, latents=latents("3.1/x0"))
    assert desk.kept("3.1/x0") and (TRAIN, 3) in desk.assembler.complete


def test_pixels_go_once_every_reward_has_answered_and_what_is_trained_on_stays():
    desk, key = Desk("point", "size"), (TRAIN, 3)
    desk.assembler.expect(key)
    desk.sampled(3, latents=latents("3.1/x0"))
    desk.scored(3)
    assert desk.kept("3.1")
    desk.scored(3, reward="size")
    assert (desk.kept("3.1"), desk.kept("3.1/x0")) == (False, True)
    desk.assembler.finish(key)
    assert not desk.kept("3.1/x0")


def matrices(desk: Desk, blob: str) -> dict[str, TensorRef]:
    """References to parts and features that are in the store by now."""
    beside = {"parts": np.arange(8, dtype=np.float32).reshape(4, 2), "features": np.ones((4, 3), np.float32)}
    packed, refs = tensors.pack(blob, beside)
    desk.blobs.put(blob, packed)
    return refs


def gone(desk: Desk, blob: str) -> bool:
    try:
        desk.blobs.get(blob)
    except BlobMissing:
        return True
    return False


def test_parts_and_features_are_read_at_the_join_and_their_blob_is_freed(desk):
    desk.sampled(3)
    desk.scored(3, **matrices(desk, "3.1.reward-0/point"))
    answer = desk.assembler.complete[(TRAIN, 3)].rewards["point"]
    assert answer.parts.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]] and answer.features.shape == (4, 3)
    assert gone(desk, "3.1.reward-0/point")


def test_matrices_that_nobody_will_read_are_freed_too(desk):
    desk.assembler.expect((TRAIN, 4))
    desk.scored(99, **matrices(desk, "a group that ended"))
    desk.scored(3, **matrices(desk, "another attempt"), attempt=2)
    desk.scored(3, **matrices(desk, "measured twice"))
    desk.scored(3, **matrices(desk, "and again"))
    desk.scored(4, **matrices(desk, "never sampled"))
    assert [gone(desk, blob) for blob in ("a group that ended", "measured twice", "and again")] == [True, True, False]
    desk.sampled(3)
    desk.assembler.finish((TRAIN, 4))
    assert all(gone(desk, blob) for blob in ("another attempt", "and again", "never sampled"))


@pytest.mark.parametrize("kept", [True, False])
def test_the_pictures_of_an_evaluated_group_stay_until_it_ends_or_for_whoever_shows_them(desk, kept):
    key = (Purpose.EVAL, 3)
    desk.assembler.expect(key)
    desk.sampled(3, purpose=Purpose.EVAL)
    desk.scored(3, purpose=Purpose.EVAL)
    assert key in desk.assembler.complete and desk.kept("3.1")
    desk.assembler.finish(key, keep=("3.1",) if kept else ())
    assert desk.kept("3.1") == kept


def test_finishing_a_group_frees_the_blobs_of_every_attempt(desk):
    desk.sampled(3, attempt=1)
    desk.sampled(3, attempt=2)
    desk.assembler.finish((TRAIN, 3))
    assert not desk.kept("3.1") and not desk.kept("3.2")


def test_a_failure_is_known_until_another_attempt_makes_it_good(desk):
    key = (TRAIN, 3)
    desk.measurements.put(failure(3, epoch=EPOCH))
    desk.assembler.poll(0.0)
    assert desk.assembler.failed[key].reason == "latents are not finite"
    desk.sampled(3, attempt=2)
    desk.scored(3, attempt=2)
    assert not desk.assembler.failed and key in desk.assembler.complete


def test_training_and_evaluation_groups_of_one_number_are_two_groups(desk):
    desk.assembler.expect((Purpose.EVAL, 3))
    desk.sampled(3, purpose=Purpose.EVAL)
    desk.scored(3, purpose=Purpose.EVAL)
    assert list(desk.assembler.complete) == [(Purpose.EVAL, 3)]


def test_masked_samples_are_counted_by_reward_and_reason_once_per_group(desk):
    desk.assembler.expect((TRAIN, 4))
    for group, values in ((3, (1.0, math.nan, math.nan, 2.0)), (4, (math.nan, 1.0, 1.0, 1.0))):
        desk.sampled(group)
        desk.scored(group, values)
    assert desk.assembler.masked == {("point", "nan"): 3}


def test_everything_read_is_acknowledged(desk):
    desk.sampled(3)
    desk.scored(3)
    desk.sampled(99)
    assert desk.rollouts.backlog()[0] == desk.measurements.backlog()[0] == 0
    assert desk.assembler.poll(0.0) is False


def test_a_group_that_is_ordered_again_frees_the_blobs_of_its_former_self(desk):
    desk.sampled(3, latents=latents("3.1/x0"))
    desk.scored(3)
    desk.assembler.poll(0.0)
    assert desk.kept("3.1/x0")
    desk.assembler.expect((TRAIN, 3))
    assert not desk.kept("3.1/x0") and (TRAIN, 3) not in desk.assembler.complete
