import pytest
import torch

from drover.common.diffusion.noising import DiscreteSchedule, FlowSchedule, corrupt
from drover.common.diffusion.prediction import Parameterisation, consistency_x0, to_output, to_prediction
from drover.common.errors import ConfigError
from drover.common.protocols import Prediction

SCHEDULE = DiscreteSchedule.scaled_linear()
CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def test_a_negative_time_is_the_end_the_schedule_names():
    first, clean = SCHEDULE, DiscreteSchedule.scaled_linear(final="clean")
    time = torch.tensor([-1, -19, 999])
    assert first.coefficients(time)[0].square().tolist() == pytest.approx([0.99915, 0.99915, 0.0046601], abs=1e-8)
    assert clean.coefficients(time)[0].tolist()[:2] == [1.0, 1.0]
    assert clean.coefficients(time)[1].tolist()[:2] == [0.0, 0.0]


def test_schedules_of_diffusers_configs_are_theirs():
    from diffusers import DDIMScheduler

    for beta_schedule in ("scaled_linear", "linear"):
        theirs = DDIMScheduler(**{**CONFIG, "beta_schedule": beta_schedule}, clip_sample=False)
        ours = DiscreteSchedule.from_diffusers(theirs.config)
        assert ours.final == "clean"
        assert torch.allclose(ours.alphas_cumprod.float(), theirs.alphas_cumprod, rtol=1e-5)
    betas = [0.1, 0.2]
    assert DiscreteSchedule.from_diffusers({"trained_betas": betas}).alphas_cumprod.tolist() == pytest.approx(
        [0.9, 0.72]
    )


@pytest.mark.parametrize(
    "settings",
    [{"clip_sample": True}, {"thresholding": True}, {"rescale_betas_zero_snr": True}, {"beta_schedule": "squaredcos"}],
)
def test_schedules_a_gaussian_step_cannot_follow_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        DiscreteSchedule.from_diffusers({**CONFIG, **settings})


def test_flow_schedule_is_the_straight_line():
    a, s = FlowSchedule().coefficients(torch.tensor([1000.0, 250.5, 0.0, -1.0]))
    assert a.tolist() == pytest.approx([0, 0.7495, 1, 1])
    assert s.tolist() == pytest.approx([1, 0.2505, 0, 0])


def test_corrupted_latents_lie_on_the_path():
    x0, noise = torch.full((2, 4, 3, 3), 2.0), torch.full((2, 4, 3, 3), -1.0)
    x = corrupt(FlowSchedule(), x0, noise, torch.tensor([0, 500]))
    assert x.dtype == torch.float32
    assert torch.equal(x[0], x0[0])
    assert torch.allclose(x[1], torch.full_like(x[1], 0.5))
    assert corrupt(SCHEDULE, x0.bfloat16(), noise.bfloat16(), torch.tensor([1, 2])).dtype == torch.float32


@pytest.mark.parametrize("kind", Parameterisation)
def test_the_right_output_is_turned_into_the_truth(kind):
    schedule = FlowSchedule() if kind == Parameterisation.FLOW else SCHEDULE
    draws = torch.Generator().manual_seed(0)
    truth = Prediction(*(torch.randn(3, 4, 2, 2, generator=draws) for _ in range(2)))
    time = torch.tensor([20, 500, 980])
    x = corrupt(schedule, truth.x0, truth.noise, time)
    output = to_output(kind, schedule, time, truth)
    prediction = to_prediction(kind, schedule, x, time, output)
    # Dividing by the smallest coefficient, a(980) = 0.076 or s(20) = 0.02, magnifies float32's rounding to 1e-5.
    assert torch.allclose(prediction.x0, truth.x0, atol=2e-5)
    assert torch.allclose(prediction.noise, truth.noise, atol=2e-5)
    assert torch.allclose(to_output(kind, schedule, time, prediction), output, atol=2e-5)


def test_v_and_epsilon_networks_with_the_same_belief_predict_the_same():
    draws = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(3, 8, generator=draws, dtype=torch.float64) for _ in range(2))
    time = torch.tensor([1, 501, 981])
    by_epsilon = to_prediction(Parameterisation.EPSILON, SCHEDULE, x, time, noise)
    v = to_output(Parameterisation.V, SCHEDULE, time, by_epsilon)
    by_v = to_prediction(Parameterisation.V, SCHEDULE, x, time, v)
    assert (by_v.x0 - by_epsilon.x0).abs().max().item() < 1e-12
    assert (by_v.noise - by_epsilon.noise).abs().max().item() < 1e-12


def test_half_precision_outputs_are_converted_in_float32():
    half = torch.ones(1, 2, dtype=torch.bfloat16)
    prediction = to_prediction(Parameterisation.EPSILON, SCHEDULE, half, torch.tensor([5]), half)
    assert prediction.x0.dtype == prediction.noise.dtype == torch.float32


def test_the_consistency_head_is_the_identity_at_time_0():
    x, x0 = torch.randn(2, 5), torch.randn(2, 5)
    time = torch.tensor([0, 279])
    head = consistency_x0(x, x0, time)
    assert torch.equal(head[0], x[0])
    assert torch.allclose(head[1], x0[1], atol=1e-6)
