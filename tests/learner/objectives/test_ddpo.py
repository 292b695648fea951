import math

import numpy as np
import pytest
import torch

from drover.common.errors import ConfigError
from drover.learner.examples import StepBatch
from drover.learner.objective import Models
from drover.learner.objectives.ddpo import Ddpo
from drover.worlds.plane.policy import ToyChain, toy_kernel
from tests.learner.made_up import by_group, measured, record

NAN = math.nan


def ddpo(normalise="group", **weights):
    return Ddpo(weights=weights or {"point": 1.0}, clip=0.2, normalise=normalise)


def test_within_a_group_the_level_of_a_prompt_does_not_matter():
    easy, hard = by_group(ddpo("group").credit([measured(0, point=[10, 11]), measured(1, point=[0, 1])]))
    assert easy == pytest.approx(hard)
    assert easy == pytest.approx([-(0.5**0.5), 0.5**0.5])


def test_within_a_batch_it_does():
    easy, hard = by_group(ddpo("batch").credit([measured(0, point=[10, 11]), measured(1, point=[0, 1])]))
    assert (easy > 0).all() and (hard < 0).all()
    assert np.concatenate([easy, hard]).mean() == pytest.approx(0, abs=1e-12)


def test_centred_the_level_of_a_prompt_does_not_matter_but_its_spread_does():
    """Deviations +-0.5 and +-0.01: two samples each, so the common deviation is sqrt((2 x 0.25 + 2 x 0.0001) / 2)."""
    spread, even = by_group(ddpo("centred").credit([measured(0, point=[10, 11]), measured(1, point=[0.01, 0.03])]))
    assert spread == pytest.approx([-0.99980, 0.99980], abs=1e-5)
    assert even == pytest.approx([-0.019996, 0.019996], abs=1e-6)


def test_centred_a_group_with_one_valid_sample_teaches_nothing_and_shapes_no_statistic():
    alone, others = by_group(ddpo("centred").credit([measured(0, point=[7, NAN]), measured(1, point=[0, 1])]))
    assert alone.tolist() == [0, 0]
    assert others == pytest.approx([-(0.5**0.5), 0.5**0.5])


def test_an_invalid_sample_weighs_nothing_and_shapes_no_statistic():
    with_nan, without = by_group(ddpo().credit([measured(0, point=[1, NAN, 2, 4]), measured(1, point=[1, 2, 4])]))
    assert with_nan[1] == 0
    assert np.delete(with_nan, 1) == pytest.approx(without)


def test_a_sample_counts_only_if_every_weighed_reward_is_valid_for_it():
    credit = ddpo(point=1.0, size=1.0).credit([measured(0, point=[1, 2, 3, NAN], size=[NAN, 2, 3, 4])])
    assert credit.terms == 2
    assert credit.weights.flatten().tolist() == pytest.approx([0, -(2**0.5), 2**0.5, 0])


def test_rewards_of_other_units_are_standardised_before_they_are_weighed():
    point, size = [0.1, 0.2, 0.4], [9000.0, 1000.0, 5000.0]
    both = ddpo(point=2.0, size=0.5).credit([measured(0, point=point, size=size)])
    scaled = ddpo(point=2.0, size=0.5).credit([measured(0, point=point, size=[s / 1000 for s in size])])
    first, second = (
        ddpo(point=1.0).credit([measured(0, point=point)]),
        ddpo(size=1.0).credit([measured(0, size=size)]),
    )
    assert both.weights == pytest.approx(2.0 * first.weights + 0.5 * second.weights)
    assert both.weights == pytest.approx(scaled.weights, abs=1e-5)


@pytest.mark.parametrize("values", [[3, 3, 3], [NAN, NAN, 1], [NAN, NAN, NAN]])
def test_a_group_that_teaches_nothing_says_so(values):
    credit = ddpo().credit([measured(0, point=values)])
    assert credit.teaches(1).tolist() == [False] and credit.weights.tolist() == [[0], [0], [0]]


@pytest.mark.parametrize(
    "fields", [{"weights": {}}, {"clip": 0.0}, {"clip": NAN}, {"advantage_clip": -1.0}], ids=lambda f: next(iter(f))
)
def test_impossible_settings_are_refused(fields):
    with pytest.raises(ConfigError, match="at least one reward and positive clips"):
        Ddpo(**{"weights": {"point": 1.0}, "clip": 0.2, **fields})


def steps_batch(policy, kernel, weights, step=2):
    made = record(policy, kernel, 0, samples=len(weights), steps=[step])
    full = torch.full((len(weights),), made.times[0])
    return StepBatch(
        x=made.states[:, 0], x_next=made.states[:, 1], time=full, next_time=torch.full_like(full, made.next_times[0]),
        log_prob=made.log_probs[:, 0].reshape(-1, 1), weight=torch.tensor(weights)[:, None],
        cond=policy.encode(["a"] * len(weights)),
    )  # fmt: skip


def test_on_unchanged_weights_the_ratio_is_1_nothing_is_clipped_and_the_loss_is_minus_the_weights():
    policy, kernel = ToyChain(), toy_kernel()
    out = ddpo().loss(Models(policy, kernel), steps_batch(policy, kernel, [1.0, -2.0, 0.5]))
    assert out.total.item() == pytest.approx(0.5, abs=1e-5)
    assert out.watched["ratio"].item() == pytest.approx(3.0, abs=1e-5)
    assert out.watched["clip_fraction"].item() == 0
    assert out.watched["approx_kl"].item() == pytest.approx(0, abs=1e-9)


def test_on_policy_its_gradient_is_the_score_function_gradient():
    policy, kernel = ToyChain(), toy_kernel()
    weights = [1.0, -2.0, 0.5]
    batch = steps_batch(policy, kernel, weights)
    ddpo().loss(Models(policy, kernel), batch).total.backward()
    clipped = policy.trainable.b.grad.clone()
    policy.trainable.b.grad = None
    step = kernel.step(
        policy.schedule, batch.x, batch.time, batch.next_time, policy.predict(batch.x, batch.time, batch.cond)
    )
    (-(batch.weight * step.log_prob(batch.x_next)).sum()).backward()
    assert torch.allclose(clipped, policy.trainable.b.grad, rtol=1e-5, atol=1e-7)
    assert clipped.abs().sum() > 0.1


def test_a_better_sample_becomes_more_likely_and_a_worse_one_less():
    policy, kernel = ToyChain(), toy_kernel()
    batch = steps_batch(policy, kernel, [1.0, -1.0])
    ddpo().loss(Models(policy, kernel), batch).total.backward()
    with torch.no_grad():
        policy.trainable.b -= 0.01 * policy.trainable.b.grad
        step = kernel.step(
            policy.schedule, batch.x, batch.time, batch.next_time, policy.predict(batch.x, batch.time, batch.cond)
        )
        moved = step.log_prob(batch.x_next) - batch.log_prob
    assert moved[0] > moved[1]
    assert (moved[0] - moved[1]).item() > 1e-3
