"""The contract of kernels: a step is a Gaussian on the path, its density is that of its own samples, and times fall."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from drover.common.diffusion import kernels
from drover.common.diffusion.gaussian import Gaussian
from drover.common.diffusion.kernels.euler_maruyama import ConstantNoise, EulerMaruyama, FlowGrpo
from drover.common.diffusion.kernels.renoise import CoefficientPreserving, Consistency, Ddim, Renoise
from drover.common.diffusion.noising import DiscreteSchedule, FlowSchedule, corrupt, over
from drover.common.protocols import Kernel, Prediction, Schedule
from tests.contracts.walk import classes

STEPS, LATENT = 8, (3, 4, 5)


@dataclass(frozen=True)
class Case:
    kernel: Kernel
    schedule: Schedule


KERNELS = sorted(classes(kernels, "num_steps", "stochastic", "times", "step"), key=lambda kind: kind.__name__)
RULES = sorted(
    {*classes(kernels, "stochastic", "fresh"), *classes(kernels, "stochastic", "diffusion")},
    key=lambda kind: kind.__name__,
)
VP, VP_CLEAN, FLOW = DiscreteSchedule.scaled_linear(), DiscreteSchedule.scaled_linear(final="clean"), FlowSchedule()
# The kernels under test, by their rule of noise; a new kernel or rule gets a line here, and every test below runs on it.
MADE: dict[type, list[Case]] = {
    Ddim: [Case(Renoise(STEPS, Ddim(eta)), path) for eta in (0.0, 0.5, 1.0) for path in (VP, VP_CLEAN)],
    Consistency: [Case(Renoise(STEPS, Consistency()), path) for path in (VP, VP_CLEAN)],
    CoefficientPreserving: [Case(Renoise(STEPS, CoefficientPreserving(eta)), FLOW) for eta in (0.0, 0.7)],
    FlowGrpo: [Case(EulerMaruyama(STEPS, FlowGrpo(eta)), FLOW) for eta in (0.0, 0.7)],
    ConstantNoise: [Case(EulerMaruyama(STEPS, ConstantNoise(sigma)), FLOW) for sigma in (0.0, 0.3)],
}


def test_every_kernel_and_every_rule_of_the_package_is_under_contract() -> None:
    assert set(RULES) == set(MADE), "add a line to MADE"
    assert set(KERNELS) == {type(case.kernel) for cases in MADE.values() for case in cases}, "add a line to MADE"


@pytest.fixture(params=[case for rule in RULES for case in MADE[rule]], ids=lambda case: f"{case.kernel}")
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def steps(case: Case, *, shift: float = 0.0) -> tuple[Tensor, Gaussian]:
    """(x [STEPS, ...], the distribution of the next state): a row for every step of the chain."""
    draws = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(STEPS, *LATENT, generator=draws) for _ in range(2))
    times = torch.tensor(case.kernel.times(case.schedule))
    x = corrupt(case.schedule, x0, noise, times[:-1])
    a, s = (over(coefficient, x) for coefficient in case.schedule.coefficients(times[:-1]))
    predicted = noise + shift
    # At the first time of a flow a is 0, and x says nothing of x0.
    clean = torch.where(a > 0, (x - s * predicted) / a.clamp(min=1e-9), x0)
    return x, case.kernel.step(case.schedule, x, times[:-1], times[1:], Prediction(x0=clean, noise=predicted))


def test_times_fall_strictly_from_noise_to_the_end_of_the_path(case: Case) -> None:
    times = case.kernel.times(case.schedule)
    assert len(times) == case.kernel.num_steps + 1 == STEPS + 1
    assert all(now > then for now, then in pairwise(times))
    end = case.schedule.coefficients(torch.tensor(times[-1:]))
    assert all(
        torch.equal(one, other) for one, other in zip(end, case.schedule.coefficients(torch.tensor([-1])), strict=True)
    )


def test_noise_is_injected_by_stochastic_kernels_alone_and_in_every_step_that_does_not_end_clean(case: Case) -> None:
    _, step = steps(case)
    std = step.std.flatten()
    assert step.std.shape == (STEPS, 1, 1, 1) and bool((std >= 0).all())
    if not case.kernel.stochastic:
        assert bool((std == 0).all())
        return
    ends_clean = case.schedule.coefficients(torch.tensor(case.kernel.times(case.schedule)[-1:]))[1].item() == 0
    without = [i for i, value in enumerate(std.tolist()) if value == 0]
    assert without == ([STEPS - 1] if ends_clean and not isinstance(case.kernel, EulerMaruyama) else [])


def test_a_sample_has_a_finite_density_in_each_of_its_parts(case: Case) -> None:
    _, step = steps(case)
    rows = (step.std.flatten() > 0).nonzero().flatten()
    step = Gaussian(step.mean[rows], step.std[rows])
    drawn = step.sample(torch.randn(step.mean.shape, generator=torch.Generator().manual_seed(1)))
    whole, parts = step.log_prob(drawn), step.log_prob(drawn, parts=3)
    assert (whole.shape, parts.shape) == ((len(rows), 1), (len(rows), 3))
    assert bool(parts.isfinite().all())
    assert torch.allclose(parts.mean(dim=1, keepdim=True), whole, atol=1e-5)


def test_two_beliefs_differ_by_a_positive_divergence_and_a_belief_from_itself_by_none(case: Case) -> None:
    (_, one), (_, other) = steps(case), steps(case, shift=0.1)
    rows = ((one.std.flatten() > 0) & ((one.mean != other.mean).flatten(1).any(dim=1))).nonzero().flatten()
    one, other = (Gaussian(each.mean[rows], each.std[rows]) for each in (one, other))
    for parts in (1, 3):
        assert bool((one.kl(other, parts) > 0).all())
        assert bool((one.kl(one, parts).abs() < 1e-6).all())


def test_a_row_steps_alone_as_it_does_in_a_batch(case: Case) -> None:
    x, together = steps(case)
    times = torch.tensor(case.kernel.times(case.schedule))
    prediction = Prediction(x0=0.5 * x, noise=x)
    together = case.kernel.step(case.schedule, x, times[:-1], times[1:], prediction)
    for i in range(STEPS):
        row = slice(i, i + 1)
        alone = Prediction(x0=prediction.x0[row], noise=prediction.noise[row])
        step = case.kernel.step(case.schedule, x[row], times[:-1][row], times[1:][row], alone)
        assert torch.equal(step.mean, together.mean[row]) and torch.equal(step.std, together.std[row])
