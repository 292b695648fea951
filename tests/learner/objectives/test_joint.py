import math

import numpy as np
import pytest

from drover.common.errors import ConfigError
from drover.learner.examples import MeasuredGroup
from drover.learner.objectives.ddpo import Ddpo
from drover.learner.objectives.joint import Joint
from tests.learner.made_up import answer, by_group, rollout


def of(task: str, group: int, *values: float) -> MeasuredGroup:
    made = rollout(group, samples=len(values), task=task, rewards=(task,))
    return MeasuredGroup(made, {task: answer(values)})


def alone(task: str, normalise: str = "batch") -> Ddpo:
    return Ddpo(weights={task: 1.0}, clip=1e-4, normalise=normalise)


BOTH = Joint(tasks={"beauty": alone("beauty"), "parity": alone("parity")})


def test_advantages_are_taken_inside_the_task_whatever_the_scales_of_the_others():
    groups = [of("beauty", 0, 1, 2), of("parity", 1, 1000, 4000), of("beauty", 2, 3, 4)]
    found = by_group(BOTH.credit(groups))
    beauty = np.concatenate([found[0], found[2]])
    assert beauty == pytest.approx([-1.161895, -0.387298, 0.387298, 1.161895], abs=1e-6)
    assert found[1] == pytest.approx([-0.707107, 0.707107], abs=1e-6)


def test_two_ranks_worth_of_rewards_with_one_missing_give_the_advantages_of_the_paper():
    """The made-up gather of [1, 2] and [NaN, 4] in the notes on arXiv 2401.12244."""
    found = by_group(BOTH.credit([of("beauty", 0, 1, 2), of("beauty", 1, math.nan, 4)]))
    assert found[0] == pytest.approx([-0.87287, -0.21822], abs=1e-5)
    assert found[1] == pytest.approx([0.0, 1.09109], abs=1e-5)


def test_members_of_a_set_that_share_their_value_share_their_advantage():
    found = by_group(BOTH.credit([of("parity", 0, -0.5, -0.5, -0.5), of("parity", 1, -0.1, -0.1, -0.1)]))
    assert len(set(found[0])) == len(set(found[1])) == 1
    assert found[0][0] == pytest.approx(-found[1][0]) and found[0][0] < 0


def test_a_task_weight_multiplies_its_advantages_and_no_others():
    weighed = Joint(tasks=BOTH.tasks, weights={"parity": 3.0})
    groups = [of("beauty", 0, 1, 2), of("parity", 1, 1, 2)]
    plain, found = by_group(BOTH.credit(groups)), by_group(weighed.credit(groups))
    assert found[0].tolist() == plain[0].tolist()
    assert found[1].tolist() == (3 * plain[1]).tolist()


def test_equal_rewards_teach_nothing_and_no_nan():
    found = BOTH.credit([of("beauty", 0, 2.0, 2.0, 2.0)])
    assert not found.teaches(1).any() and not np.isnan(found.weights).any()


def test_it_names_every_reward_once_and_knows_whether_groups_matter():
    assert BOTH.needs.by_task == {"beauty": ("beauty",), "parity": ("parity",)}
    assert BOTH.needs.siblings == 1
    assert Joint(tasks={"beauty": alone("beauty", "centred")}).needs.siblings == 2


def test_a_weight_for_no_task_or_two_clip_ranges_are_refused():
    with pytest.raises(ConfigError, match=r"name \['beuty'\]; the tasks are \['beauty', 'parity'\]"):
        Joint(tasks=BOTH.tasks, weights={"beuty": 2.0})
    with pytest.raises(ConfigError, match="share one clip range"):
        Joint(tasks={"a": alone("a"), "b": Ddpo(weights={"b": 1.0}, clip=0.2)})
