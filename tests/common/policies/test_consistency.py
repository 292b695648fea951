import pytest
import torch

from drover.common.diffusion.kernels.density import steps_with_density
from drover.common.diffusion.kernels.renoise import Consistency, Renoise
from drover.common.diffusion.noising import over
from drover.common.diffusion.spacing import Distilled
from drover.common.errors import ConfigError
from drover.common.policies.consistency import ConsistencyHead
from drover.common.policies.stable_diffusion.policy import StableDiffusion
from tests.common.policies.sampling import distribution, start
from tests.common.policies.tiny_pipeline import write_tiny_consistency_model

KERNEL = Renoise(4, Consistency(), Distilled())


@pytest.fixture(scope="module", params=[True, False], ids=["ends clean", "ends at the first time"])
def folder(request, tmp_path_factory):
    return write_tiny_consistency_model(tmp_path_factory.mktemp("tiny") / "consistency", set_alpha_to_one=request.param)


@pytest.fixture
def policy(folder):
    return ConsistencyHead(StableDiffusion.load(folder, embedded_scale=8.0))


@torch.no_grad()
@pytest.mark.parametrize("kernel", [KERNEL, Renoise(4, Consistency())], ids=["RLCM's times", "the checkpoint's times"])
def test_four_steps_are_those_of_diffusers_and_end_at_x0(policy, folder, kernel):
    from diffusers import LatentConsistencyModelPipeline

    prompts = ["a red circle", "two blue squares"]
    noise, cond = start(policy, 2), policy.encode(prompts)
    theirs = LatentConsistencyModelPipeline.from_pretrained(folder, safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    # The pipeline's own times are rounded otherwise than those that RLCM trained on.
    given = {"timesteps": [999, 759, 519, 279]} if kernel is KERNEL else {"num_inference_steps": 4}
    wanted = theirs(
        prompts, guidance_scale=8.0, latents=noise, output_type="latent", generator=torch.Generator().manual_seed(3),
        **given,
    ).images  # fmt: skip
    draws, x = torch.Generator().manual_seed(3), noise
    for step in range(4):
        x = distribution(policy, kernel, x, step, cond).sample(torch.randn(x.shape, generator=draws))
    assert ((x - wanted).abs().max() / wanted.abs().max()).item() < 1e-5


def test_all_steps_but_the_last_can_be_trained(policy):
    assert steps_with_density(KERNEL, policy.schedule) == (0, 1, 2)


def test_its_prediction_lies_on_the_path(policy):
    x, time = start(policy, 3), torch.tensor([999, 279, 19])
    prediction = policy.predict(x, time, policy.encode(["a"] * 3))
    a, s = (over(coefficient, x) for coefficient in policy.schedule.coefficients(time))
    assert torch.allclose(a * prediction.x0 + s * prediction.noise, x, atol=1e-5)


def test_the_guidance_scale_is_asked_for_where_the_model_takes_it_and_only_there(folder, tiny_folder):
    with pytest.raises(ConfigError, match="set embedded_scale"):
        StableDiffusion.load(folder)
    with pytest.raises(ConfigError, match="leave out embedded_scale"):
        StableDiffusion.load(tiny_folder, embedded_scale=8.0)
    x, time = torch.ones(1, 4, 8, 8), torch.tensor([501])
    one, other = (StableDiffusion.load(folder, embedded_scale=scale) for scale in (2.0, 8.0))
    cond = one.encode(["a"])
    assert (one.predict(x, time, cond).noise - other.predict(x, time, cond).noise).abs().max().item() > 1e-4
