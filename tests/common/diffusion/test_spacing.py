import pytest

from drover.common.diffusion.kernels.euler_maruyama import EulerMaruyama, FlowGrpo
from drover.common.diffusion.kernels.renoise import Ddim, Renoise
from drover.common.diffusion.noising import DiscreteSchedule, FlowSchedule
from drover.common.diffusion.spacing import Distilled, DistilledEvenly, Leading, Linear, Linspace, Trailing
from drover.common.errors import ConfigError

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULE = DiscreteSchedule.scaled_linear()
STEPS = (1, 2, 3, 4, 7, 10, 25, 50, 77, 333, 999)


def test_published_time_lists_are_visited():
    assert Leading().times(SCHEDULE, 20) == (*range(951, 0, -50), -1)
    assert Trailing().times(SCHEDULE, 4) == (999, 749, 499, 249, -1)
    assert Linspace().times(SCHEDULE, 4) == (999, 666, 333, 0, -1)
    assert Distilled().times(SCHEDULE, 2) == (999, 499, -1)
    assert Distilled().times(SCHEDULE, 4) == (999, 759, 519, 279, -1)
    assert Distilled().times(SCHEDULE, 8) == (999, 879, 759, 639, 519, 399, 279, 159, -1)
    assert Distilled().times(SCHEDULE, 16)[-3:] == (159, 99, -1)
    assert DistilledEvenly().times(SCHEDULE, 4) == (999, 759, 499, 259, -1)
    assert Linear().times(FlowSchedule(), 4) == (1000, 750, 500, 250, 0)
    assert Linear(shift=3.0).times(FlowSchedule(), 4) == (1000, 900, 750, 500, 0)


@pytest.mark.parametrize(
    ("kind", "spacing"),
    [
        ("DDIMScheduler", "leading"),
        ("DDIMScheduler", "trailing"),
        ("EulerDiscreteScheduler", "leading"),
        ("EulerDiscreteScheduler", "trailing"),
        ("EulerDiscreteScheduler", "linspace"),
    ],
)
@pytest.mark.parametrize("offset", [0, 1])
def test_a_kernel_without_a_spacing_visits_the_times_of_the_checkpoints_scheduler(kind, spacing, offset):
    import diffusers

    never = {"clip_sample": False} if kind == "DDIMScheduler" else {}
    theirs = getattr(diffusers, kind)(timestep_spacing=spacing, steps_offset=offset, **BETAS, **never)
    schedule = DiscreteSchedule.from_diffusers({**theirs.config, "_class_name": kind})
    for steps in STEPS:
        theirs.set_timesteps(steps)
        ours = Renoise(steps, Ddim()).times(schedule)
        assert ours == (*(round(time) for time in theirs.timesteps.tolist()), -1)


def test_a_latent_consistency_model_is_sampled_at_its_schedulers_times():
    from diffusers import LCMScheduler

    theirs = LCMScheduler()
    schedule = DiscreteSchedule.from_diffusers({**theirs.config, "_class_name": "LCMScheduler"})
    for steps in range(1, 51):
        theirs.set_timesteps(steps)
        assert schedule.times(steps) == (*theirs.timesteps.tolist(), -1)


def test_settings_of_another_scheduler_that_a_config_was_made_from_do_not_count():
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    left_over = {**BETAS, "num_train_timesteps": 1000, "original_inference_steps": 50, "_class_name": "DDIMScheduler"}
    assert DiscreteSchedule.from_diffusers(left_over).spacing == Leading()
    euler = EulerDiscreteScheduler.from_config(DDIMScheduler(**BETAS, set_alpha_to_one=False).config)
    assert euler.config["set_alpha_to_one"] is False
    found = {
        spacing: DiscreteSchedule.from_diffusers(
            {**euler.config, "_class_name": "EulerDiscreteScheduler", "timestep_spacing": spacing, "clip_sample": False}
        ).final
        for spacing in ("leading", "trailing", "linspace")
    }
    assert found == {"leading": "first", "trailing": "clean", "linspace": "clean"}


def test_a_kernel_that_names_a_spacing_follows_that():
    trailing = DiscreteSchedule(SCHEDULE.alphas_cumprod, spacing=Trailing())
    assert Renoise(2, Ddim()).times(trailing) == (999, 499, -1)
    assert Renoise(2, Ddim(), Leading()).times(trailing) == (501, 1, -1)
    shifted = FlowSchedule(spacing=Linear(shift=3.0))
    assert EulerMaruyama(2, FlowGrpo()).times(shifted) == (1000, 750, 0)
    assert EulerMaruyama(2, FlowGrpo(), Linear()).times(shifted) == (1000, 500, 0)


@pytest.mark.parametrize(
    ("schedule", "spacing", "steps"),
    [
        (SCHEDULE, Leading(), 1000),  # offset 1 would start at time 1000 of 0..999
        (SCHEDULE, Leading(), 1001),
        (SCHEDULE, Leading(-3), 10),
        (SCHEDULE, Trailing(), 1001),
        (SCHEDULE, Linspace(), 1001),
        (SCHEDULE, Linear(), 10),
        (FlowSchedule(), Linear(), 2000),
        (FlowSchedule(), Leading(), 10),
        (FlowSchedule(), Trailing(), 10),
    ],
)
def test_times_that_do_not_fall_along_the_path_are_refused(schedule, spacing, steps):
    with pytest.raises(ConfigError, match=rf"{steps} steps of {type(spacing).__name__}.*take fewer steps or another"):
        schedule.times(steps, spacing)


def test_a_distilled_model_has_no_more_steps_than_it_knows_times():
    for spacing in (Distilled(), DistilledEvenly()):
        with pytest.raises(ConfigError, match="51 steps, but the model knows 50 times"):
            SCHEDULE.times(51, spacing)


def test_linspace_is_refused_where_the_scheduler_leaves_its_own_times():
    """DDIM's step goes from t to t - T // n: from 999 to 899 in 10 steps, but the model's next time is 888."""
    for kind in ("DDIMScheduler", "PNDMScheduler"):
        config = {**BETAS, "num_train_timesteps": 1000, "timestep_spacing": "linspace", "_class_name": kind}
        with pytest.raises(ConfigError, match=f"{kind} with timestep_spacing 'linspace'.*set \"timestep_spacing\""):
            DiscreteSchedule.from_diffusers(config)
    with pytest.raises(ConfigError, match="timestep_spacing 'cosine' is none of"):
        DiscreteSchedule.from_diffusers({**config, "timestep_spacing": "cosine"})
