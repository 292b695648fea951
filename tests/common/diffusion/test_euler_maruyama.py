import math
from itertools import pairwise

import pytest
import torch

from drover.common.diffusion.kernels.density import steps_with_density
from drover.common.diffusion.kernels.euler_maruyama import ConstantNoise, EulerMaruyama, FlowGrpo
from drover.common.diffusion.noising import FlowSchedule
from drover.common.diffusion.prediction import Parameterisation, to_prediction
from drover.common.diffusion.spacing import Linear
from drover.common.errors import ConfigError
from drover.common.protocols import Prediction
from tests.common.diffusion.golden import vectors

SCHEDULE = FlowSchedule()
PAIRS = [(1000, 900), (900, 800), (500, 350), (100, 0), (1, 0)]


def step_of(kernel, x, velocity, time, then):
    time, then = torch.tensor([time]), torch.tensor([then])
    prediction = to_prediction(Parameterisation.FLOW, SCHEDULE, x, time, velocity)
    return kernel.step(SCHEDULE, x, time, then, prediction)


@pytest.mark.parametrize(("time", "then"), PAIRS)
def test_flow_grpo_step_matches_its_paper(time, then):
    x, v, _ = vectors()
    t, dt, eta = time / 1000, (then - time) / 1000, 0.7
    g = eta * math.sqrt(t / (1 - (t if t < 1 else then / 1000)))
    # eq. 9: x + (v + g^2 / 2t (x + (1 - t) v)) dt + g sqrt(|dt|) z
    wanted = x + (v + g**2 / (2 * t) * (x + (1 - t) * v)) * dt
    step = step_of(EulerMaruyama(10, FlowGrpo(eta)), x, v, time, then)
    assert (step.mean - wanted).abs().max().item() < 1e-12
    assert step.std.item() == pytest.approx(g * math.sqrt(-dt), abs=1e-12)


@pytest.mark.parametrize(("time", "then"), PAIRS)
def test_constant_noise_step_matches_its_paper(time, then):
    x, v, _ = vectors()
    t, dt, sigma = time / 1000, (then - time) / 1000, 0.3
    x0 = x - t * v
    # DanceGRPO: drift v - sigma^2 / 2 score, with score = -(x - (1 - t) x0) / t^2
    score = -(x - (1 - t) * x0) / t**2
    step = step_of(EulerMaruyama(10, ConstantNoise(sigma)), x, v, time, then)
    assert (step.mean - (x + (v - sigma**2 / 2 * score) * dt)).abs().max().item() < 1e-12
    assert step.std.item() == pytest.approx(sigma * math.sqrt(-dt), abs=1e-12)


def test_without_noise_it_is_the_euler_step_of_the_flow():
    x, v, _ = vectors()
    kernel = EulerMaruyama(10, ConstantNoise(0.0))
    assert not kernel.stochastic
    assert (step_of(kernel, x, v, 500, 400).mean - (x - 0.1 * v)).abs().max().item() < 1e-12


def test_every_step_has_a_finite_density_the_first_and_the_last_too():
    for rule in (FlowGrpo(), ConstantNoise()):
        kernel = EulerMaruyama(6, rule, Linear(shift=3.0))
        assert steps_with_density(kernel, SCHEDULE) == tuple(range(6))
        times = torch.tensor(kernel.times(SCHEDULE))
        x = torch.ones(6, 4)
        step = kernel.step(SCHEDULE, x, times[:-1], times[1:], Prediction(x0=x, noise=-x))
        assert bool(step.log_prob(step.sample(x)).isfinite().all())


def test_the_sde_keeps_the_marginals_of_the_flow():
    # Data N(1, 0.25): the exact prediction is linear in x, so only the discretisation is left. 100 steps, 20k chains.
    draws = torch.Generator().manual_seed(3)
    kernel = EulerMaruyama(100, ConstantNoise(0.5))
    times = kernel.times(SCHEDULE)
    x = torch.randn(20_000, 1, generator=draws)
    for now, then in pairwise(times):
        a, s = 1 - now / 1000, now / 1000
        x0 = 1 + a * 0.25 / (a**2 * 0.25 + s**2) * (x - a)
        time, next_time = torch.full((len(x),), now), torch.full((len(x),), then)
        step = kernel.step(SCHEDULE, x, time, next_time, Prediction(x0=x0, noise=(x - a * x0) / s))
        x = step.sample(torch.randn(x.shape, generator=draws))
    assert x.mean().item() == pytest.approx(1.0, abs=0.02)
    assert x.std().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    "make", [lambda: FlowGrpo(-1), lambda: ConstantNoise(-0.1), lambda: EulerMaruyama(1, FlowGrpo())]
)
def test_impossible_settings_are_refused(make):
    with pytest.raises(ConfigError, match="got"):
        make()
