"""The contract of objectives: sums, declared names, weight 0, and credit that says which groups teach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from drover.common import seeds
from drover.common.errors import ConfigError
from drover.common.policies.conditioning import concat
from drover.learner import objectives
from drover.learner.examples import LatentBatch, StepBatch
from drover.learner.objective import Models, Objective
from drover.learner.objectives.ddpo import Ddpo
from drover.learner.objectives.denoising import Denoising
from drover.learner.objectives.joint import Joint
from drover.worlds.plane.model import toy_kernel
from drover.worlds.plane.policy import ToyChain
from tests.contracts.walk import classes
from tests.learner.made_up import measured, record

FOUND = sorted(classes(objectives, "learns_from", "watched", "needs"), key=lambda kind: kind.__name__)
# One instance of each objective; a new objective gets a line here, and every test below runs on it.
MADE: dict[type, Callable[[], Objective]] = {
    Ddpo: lambda: Ddpo(weights={"point": 1.0}, clip=0.2),
    Joint: lambda: Joint(tasks={"t": Ddpo(weights={"point": 1.0}, clip=0.2)}),
    Denoising: Denoising,
}
LEARN_FROM_FILES_ALONE = (Denoising,)


def test_every_objective_of_the_package_is_under_contract() -> None:
    assert set(FOUND) == set(MADE), "add a line to MADE"


@pytest.fixture(params=FOUND, ids=lambda kind: kind.__name__)
def objective(request: pytest.FixtureRequest) -> Objective:
    return MADE[request.param]()


def batch_for(objective: Objective, weights: tuple[float, ...], seed: int = 0) -> Any:
    """A batch of the kind that the objective learns from, of samples that the policy has drawn."""
    policy, kernel = ToyChain(), toy_kernel()
    made = record(policy, kernel, seed, samples=len(weights), steps=[2])
    weight, cond = torch.tensor(weights)[:, None], policy.encode(["a"] * len(weights))
    if objective.learns_from is LatentBatch:
        draws = seeds.generators(seed, "contract", 0, range(len(weights)))
        return LatentBatch(x0=made.states[:, 1], weight=weight, cond=cond, draws=draws)
    time = torch.full((len(weights),), made.times[0])
    return StepBatch(
        x=made.states[:, 0] + 0.1, x_next=made.states[:, 1], time=time,
        next_time=torch.full_like(time, made.next_times[0]), log_prob=made.log_probs[:, 0], weight=weight, cond=cond,
    )  # fmt: skip


def together(one: Any, other: Any) -> Any:
    """Two batches as one."""
    if isinstance(one, LatentBatch):
        tensors = {name: torch.cat([getattr(one, name), getattr(other, name)]) for name in ("x0", "weight")}
        return replace(one, **tensors, cond=concat([one.cond, other.cond]), draws=[*one.draws, *other.draws])
    names = ("x", "x_next", "time", "next_time", "log_prob", "weight")
    tensors = {name: torch.cat([getattr(one, name), getattr(other, name)]) for name in names}
    return replace(one, **tensors, cond=concat([one.cond, other.cond]))


def loss(objective: Objective, batch: Any) -> tuple[float, torch.Tensor, dict[str, float]]:
    """(total, gradient, watched) of a fresh policy."""
    policy = ToyChain()
    with torch.no_grad():
        policy.trainable.b += 0.05
    output = objective.loss(Models(policy, toy_kernel(), reference=ToyChain()), batch)
    output.total.backward()
    watched = {name: value.item() for name, value in output.watched.items()}
    return output.total.item(), policy.trainable.b.grad, watched


def test_a_loss_is_a_sum_and_so_are_the_watched_numbers(objective: Objective) -> None:
    one, other = ((1.0, -0.5, 2.0), 0), ((0.5, 1.5), 1)
    first, second = (loss(objective, batch_for(objective, *each)) for each in (one, other))
    both = loss(objective, together(batch_for(objective, *one), batch_for(objective, *other)))
    assert both[0] == pytest.approx(first[0] + second[0], rel=1e-5)
    assert torch.allclose(both[1], first[1] + second[1], rtol=1e-4, atol=1e-6)
    for name, value in both[2].items():
        assert value == pytest.approx(first[2][name] + second[2][name], rel=1e-5, abs=1e-6)


def test_weight_0_has_neither_value_nor_gradient(objective: Objective) -> None:
    total, gradient, _ = loss(objective, batch_for(objective, (0.0, 0.0, 0.0)))
    assert total == 0 and not gradient.any()


def test_the_watched_numbers_are_the_declared_ones(objective: Objective) -> None:
    assert loss(objective, batch_for(objective, (1.0, -1.0)))[2].keys() == set(objective.watched)


def test_credit_is_pure_and_equal_rewards_teach_nothing(objective: Objective) -> None:
    if isinstance(objective, LEARN_FROM_FILES_ALONE):
        with pytest.raises(ConfigError, match="learns from files alone"):
            objective.credit([])
        return
    groups = [measured(0, point=[1.0, 2.0, 3.0, 5.0]), measured(1, point=[2.0, 2.0, 2.0, 2.0])]
    first, again = objective.credit(groups), objective.credit(groups)
    assert np.array_equal(first.rows, again.rows) and np.array_equal(first.weights, again.weights)
    assert first.teaches(2).tolist() == [True, False]
    assert first.rows[..., 0].max() <= 1 and first.rows[..., 1].max() <= 3 and first.terms > 0
