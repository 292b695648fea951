import math

import pytest
import torch

from drover.common.diffusion.kernels.density import require_density, steps_with_density
from drover.common.diffusion.kernels.renoise import CoefficientPreserving, Consistency, Ddim, Renoise
from drover.common.diffusion.noising import DiscreteSchedule, FlowSchedule
from drover.common.diffusion.prediction import consistency_x0
from drover.common.diffusion.spacing import Distilled, Linear
from drover.common.errors import ConfigError
from drover.common.protocols import Prediction
from tests.common.diffusion.golden import SCALARS, SCHEDULE, VECTORS, epsilon, vectors


def at(time: int) -> torch.Tensor:
    return torch.tensor([time])


@pytest.mark.parametrize(("steps", "time", "then", "abar", "abar_then", "sigma", "c_x", "c_e"), SCALARS)
def test_ddim_coefficients_match_the_published_table(steps, time, then, abar, abar_then, sigma, c_x, c_e):
    kernel = Renoise(steps, Ddim(eta=1.0))
    times = kernel.times(SCHEDULE)
    assert times[times.index(time) + 1] == then
    assert SCHEDULE.coefficients(at(time))[0].square().item() == pytest.approx(abar, abs=5e-9)
    assert SCHEDULE.coefficients(at(then))[0].square().item() == pytest.approx(abar_then, abs=5e-9)
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    of_x = kernel.step(SCHEDULE, one, at(time), at(then), epsilon(one, at(time), zero))
    of_e = kernel.step(SCHEDULE, zero, at(time), at(then), epsilon(zero, at(time), one))
    assert of_x.std.item() == pytest.approx(sigma, rel=1e-6)
    assert of_x.mean.item() == pytest.approx(c_x, rel=1e-6)
    # c_e is a difference of terms of order sqrt(1 - abar) / sqrt(abar), up to 13: float32 leaves 1e-6 of those.
    assert of_e.mean.item() == pytest.approx(c_e, abs=1e-6)
    on_policy = -0.5 - math.log(sigma) - 0.5 * math.log(2 * math.pi)
    draws = torch.Generator().manual_seed(0)
    wide = of_x.sample(torch.randn(1, 200_000, generator=draws))
    assert of_x.log_prob(wide).item() == pytest.approx(on_policy, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("steps", "time", "then", "mean", "sample", "log_prob", "ratio"), VECTORS)
def test_ddim_step_matches_the_published_vectors(dtype, steps, time, then, mean, sample, log_prob, ratio):
    x, noise, fresh = vectors(dtype)
    kernel = Renoise(steps, Ddim(eta=1.0))
    step = kernel.step(SCHEDULE, x, at(time), at(then), epsilon(x, at(time), noise))
    drawn = step.sample(fresh)
    assert drawn.dtype == dtype
    assert step.mean[0, :3].tolist() == pytest.approx(mean, abs=1.5e-6)
    assert drawn[0, :3].tolist() == pytest.approx(sample, abs=1.5e-6)
    assert step.log_prob(drawn).item() == pytest.approx(log_prob, abs=1e-6 if dtype == torch.float32 else 1e-9)
    shifted = kernel.step(SCHEDULE, x, at(time), at(then), epsilon(x, at(time), noise + 0.01))
    change = (shifted.log_prob(drawn) - step.log_prob(drawn)).exp().item()
    assert change == pytest.approx(ratio, abs=5e-6 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize(("eta", "time"), [(1.0, 981), (1.0, 501), (1.0, 1), (0.5, 501), (0.0, 501)])
def test_ddim_is_the_step_of_diffusers(eta, time):
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    theirs.alphas_cumprod = SCHEDULE.alphas_cumprod
    theirs.final_alpha_cumprod = SCHEDULE.alphas_cumprod[0]
    theirs.set_timesteps(50)
    kernel = Renoise(50, Ddim(eta))
    times = kernel.times(SCHEDULE)
    assert times[:-1] == tuple(theirs.timesteps.tolist())
    x, noise, fresh = vectors()
    then = times[times.index(time) + 1]
    ours = kernel.step(SCHEDULE, x, at(time), at(then), epsilon(x, at(time), noise)).sample(fresh)
    wanted = theirs.step(noise, time, x, eta=eta, variance_noise=fresh if eta else None).prev_sample
    assert (ours - wanted).abs().max().item() < 1e-12


@pytest.mark.parametrize(
    ("time", "then", "head", "mean", "std", "log_prob"),
    [
        (999, 879, (-29.263455, -18.359763, -0.196226), (-3.874968, -2.431138, -0.025984), 0.99119414, -1.193570558),
        (279, 159, (-2.037565, -1.320847, -0.219944), None, 0.43012777, -0.358742439),
    ],
)
def test_consistency_step_matches_the_published_vectors(time, then, head, mean, std, log_prob):
    x, noise, fresh = vectors()
    x0 = consistency_x0(x, epsilon(x, at(time), noise).x0, at(time))
    assert x0[0, :3].tolist() == pytest.approx(head, abs=1e-6)
    step = Renoise(8, Consistency(), Distilled()).step(SCHEDULE, x, at(time), at(then), Prediction(x0, noise))
    if mean is not None:
        assert step.mean[0, :3].tolist() == pytest.approx(mean, abs=1e-6)
    assert step.std.item() == pytest.approx(std, abs=1e-8)
    assert step.log_prob(step.sample(fresh)).item() == pytest.approx(log_prob, abs=1e-9)


@pytest.mark.parametrize(("eta", "time", "then"), [(0.5, 1000, 900), (0.9, 500, 400), (0.0, 300, 200), (1.0, 100, 0)])
def test_coefficient_preserving_step_matches_its_paper(eta, time, then):
    x, velocity, _ = vectors()
    t, t_then = time / 1000, then / 1000
    # Flow-CPS: x0 = x - t v, x1 = x + (1 - t) v; x' = (1 - t') x0 + t' cos(eta pi/2) x1 + t' sin(eta pi/2) z
    x0, x1 = x - t * velocity, x + (1 - t) * velocity
    step = Renoise(10, CoefficientPreserving(eta), Linear()).step(
        FlowSchedule(), x, at(time), at(then), Prediction(x0, x1)
    )
    wanted = (1 - t_then) * x0 + t_then * math.cos(eta * math.pi / 2) * x1
    assert (step.mean - wanted).abs().max().item() < 1e-12
    assert step.std.item() == pytest.approx(t_then * math.sin(eta * math.pi / 2), abs=1e-12)


def test_samples_at_different_times_score_as_they_do_alone():
    x, noise, fresh = (torch.cat([row, row.flip(1), row.roll(3, 1)]) for row in vectors(torch.float32))
    time, then = torch.tensor([981, 501, 1]), torch.tensor([961, 481, -1])
    kernel = Renoise(50, Ddim())
    together = kernel.step(SCHEDULE, x, time, then, epsilon(x, time, noise))
    scores = together.log_prob(together.sample(fresh))
    for i in range(3):
        row = slice(i, i + 1)
        alone = kernel.step(SCHEDULE, x[row], time[row], then[row], epsilon(x[row], time[row], noise[row]))
        assert scores[i].item() == pytest.approx(alone.log_prob(alone.sample(fresh[row])).item(), abs=1e-6)


@pytest.mark.parametrize("make", [lambda: Ddim(1.5), lambda: CoefficientPreserving(-0.1), lambda: Renoise(0, Ddim())])
def test_impossible_settings_are_refused(make):
    with pytest.raises(ConfigError, match="got"):
        make()


def test_only_steps_that_keep_noise_can_be_trained():
    clean_end = DiscreteSchedule.scaled_linear(final="clean")
    assert steps_with_density(Renoise(4, Ddim()), SCHEDULE) == (0, 1, 2, 3)
    assert steps_with_density(Renoise(4, Ddim()), clean_end) == (0, 1, 2)
    assert steps_with_density(Renoise(4, Ddim(eta=0)), SCHEDULE) == ()
    require_density(Renoise(4, Ddim()), clean_end, [0, 2])
    require_density(Renoise(4, Ddim(eta=0)), SCHEDULE, [])
    with pytest.raises(ConfigError, match="set eta above 0"):
        require_density(Renoise(4, Ddim(eta=0)), SCHEDULE, [1])
    with pytest.raises(ConfigError, match=r"steps \[3\].*record among \[0, 1, 2\]"):
        require_density(Renoise(4, Ddim()), clean_end, [0, 3])


def test_a_deterministic_step_samples_its_mean_and_has_no_density():
    x, noise, fresh = vectors()
    kernel = Renoise(50, Ddim(eta=0.0))
    assert not kernel.stochastic
    step = kernel.step(SCHEDULE, x, at(501), at(481), epsilon(x, at(501), noise))
    assert torch.equal(step.sample(fresh), step.mean)
    with pytest.raises(ValueError, match="no density"):
        step.log_prob(x)
