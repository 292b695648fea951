import math
import threading

import pytest

from drover.common import tensors
from drover.common.errors import ConfigError
from drover.common.types import Purpose
from drover.reward_servers.serving.groups import MAX_ATTEMPTS
from drover.reward_servers.serving.scoring import CALL, MAX_HANGING
from drover.reward_servers.serving.server import RewardServer
from tests.reward_servers.serving.desk import Brightness, Counting, Desk, Spread, Thorough, until


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


def test_parts_and_features_travel_in_one_blob_a_measurement_with_the_rows_of_its_own_samples():
    desk = Desk(Thorough())
    desk.bring(0, 1, 2)
    desk.bring(1, 3)
    blobs = desk.broker.blobs()
    for answer, levels in zip(desk.answers().values(), ([1, 2], [3]), strict=True):
        assert answer.blobs == (f"4.train.{answer.group}.1.reward-0/brightness",)
        parts, features = (tensors.read(blobs, ref).numpy() for ref in (answer.parts, answer.features))
        assert parts.tolist() == [[level, 2 * level, 3 * level] for level in levels]
        assert features.tolist() == [[level, -level] for level in levels]


def test_a_measurement_without_matrices_has_no_blob(desk):
    desk.bring(0, 1)
    assert desk.answers()[0].blobs == ()


def test_a_sample_whose_part_is_not_finite_is_masked_and_parts_that_are_no_matrix_lose_their_group():
    desk = Desk(Thorough())
    desk.bring(0, 1, 2, prompts=("nan part",))
    desk.bring(1, 3, 4, prompts=("flat",))
    answers = desk.answers()
    assert answers[0].reasons == ("", "nan") and answers[1].reasons == ("error", "error")
    assert answers[1].blobs == () and "parts of shape [2] for 2 samples" in desk.server.trouble


def test_prompts_come_to_the_scorer_with_their_fields():
    desk = Desk(Counting())
    desk.bring(0, 1, 2, 3, 4, prompts=("a", "b"), fields=('{"count": 3}', "{}"))
    desk.bring(1, 5)
    assert {group: answer.values for group, answer in desk.answers().items()} == {0: (3, 3, -1, -1), 1: (-1,)}


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


def test_media_cut_short_are_as_good_as_gone(desk):
    desk.bring(0, 10)
    desk.bring(1, 20, 30)
    desk.broker.blobs().put("1/media", [b"12345"])
    assert list(desk.answers()) == [0]


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
    elsewhere = set(threading.enumerate())
    desk = Desk(deadline_s=0.03)
    for group in range(MAX_HANGING + 3):
        desk.bring(group, 10, prompts=("hang",))
        desk.server.run_once(0.0)
    answers = desk.answers()
    assert {answer.reasons for answer in answers.values()} == {("timeout",)} and len(answers) == MAX_HANGING + 3
    assert len(desk.scorer.calls) == MAX_HANGING
    desk.scorer.wake.set()
    until(lambda: not any(thread.name == CALL for thread in set(threading.enumerate()) - elsewhere))
    desk.bring(100, 50)
    assert desk.answers()[100].values == (50,)


def test_a_scorers_own_time_out_is_an_error_like_any_other():
    class Impatient:
        def __call__(self, prompts, media):
            raise TimeoutError("the judge is away")

    desk = Desk(Impatient(), deadline_s=5.0)
    desk.bring(0, 10)
    assert desk.answers()[0].reasons == ("error",) and "the judge is away" in desk.server.trouble


# ------------------------------------------------------------------------ groups that kill their server


def test_one_group_that_kills_every_server_takes_none_of_its_fellows_along():
    class Killed(BaseException):
        """Stands for the death of the process: no code of the server runs after it."""

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
        server = RewardServer("brightness", Fragile(), desk.inbox_of(f"reward-{life}", rollouts), desk.meter)
        try:
            while server.run_once(0.0):
                pass
        except Killed:
            rollouts.close()  # the leases of the killed server end
        desk._said(answers)
    assert sorted(answers) == list(range(6))
    assert [group for group, answer in answers.items() if not all(answer.valid)] == [3]
