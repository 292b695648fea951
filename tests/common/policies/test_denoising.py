"""Learning from real pictures: into latents, and the loss that the network was pretrained on."""

import numpy as np
import pytest
import torch

from drover.common.diffusion.error import per_part, squared_error
from drover.common.errors import ConfigError, MediaError
from drover.common.media.media import rows
from drover.common.media.pictures import Pictures
from drover.common.media.sounds import Sounds
from drover.common.policies.consistency import ConsistencyHead
from drover.common.policies.guided import Guided
from drover.common.policies.lora import with_lora
from drover.common.policies.stable_diffusion.policy import StableDiffusion
from drover.worlds.plane.policy import ToyChain
from drover.worlds.shapes import PIPELINE
from drover.worlds.shapes.build.pretraining import sample_pair
from drover.worlds.shapes.renderer import render
from tests.common.policies.sampling import PROMPTS, start
from tests.common.policies.tiny_pipeline import write_tiny_consistency_model

TIME = torch.tensor([1, 501, 981])


@pytest.fixture(scope="module")
def shapes():
    return StableDiffusion.load(PIPELINE)


@pytest.fixture(scope="module")
def pictures():
    """16 pictures of the world and their captions."""
    rng = np.random.default_rng(0)
    scenes, captions = zip(*(sample_pair(rng) for _ in range(16)), strict=True)
    return Pictures(np.stack([render(scene) for scene in scenes])), captions


@pytest.fixture(params=["epsilon", "v", "xl"])
def policy(request, tiny_folder, tiny_v_folder, tiny_xl_folder):
    return StableDiffusion.load({"epsilon": tiny_folder, "v": tiny_v_folder, "xl": tiny_xl_folder}[request.param])


def denoising_loss(policy, x0, noise, time, cond):
    """[B]"""
    return per_part(squared_error(policy, x0, noise, time, cond)).squeeze(1)


def noise_like(x0, seed=1):
    return torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed))


def test_latents_are_those_of_diffusers_own_autoencoder(policy):
    media = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    latents = policy.to_latents(Pictures(media))
    pixels = policy.pipeline.image_processor.preprocess(media / 255.0)
    vae = policy.pipeline.vae
    with torch.no_grad():
        wanted = vae.encode(pixels.float()).latent_dist.mean * vae.config.scaling_factor
    assert latents.shape == (3, *policy.latent_shape)
    assert latents.dtype == torch.float32
    assert not latents.requires_grad
    assert ((latents - wanted).abs().max() / wanted.abs().max()).item() < 1e-5


def test_latents_normalised_per_channel_come_back_as_they_were(tiny_xl_folder):
    pipeline = StableDiffusion.load(tiny_xl_folder).pipeline
    media = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    bare = StableDiffusion(pipeline).to_latents(Pictures(media)) / 0.13025
    mean, std = [0.5, -0.2, 0.1, 0.3], [2.0, 3.0, 0.5, 1.5]
    pipeline.vae.register_to_config(latents_mean=mean, latents_std=std)
    over = [torch.tensor(column)[:, None, None] for column in (mean, std)]
    wanted = (bare - over[0]) / over[1] * 0.13025
    assert torch.allclose(StableDiffusion(pipeline).to_latents(Pictures(media)), wanted, atol=1e-5)


def test_real_pictures_survive_the_way_into_latents_and_back(shapes, pictures):
    media, _ = pictures
    latents = shapes.to_latents(media)
    # The pretraining standardised latents over the whole world.
    assert latents.mean().item() == pytest.approx(0, abs=0.1)
    assert latents.std().item() == pytest.approx(1, abs=0.1)
    again = shapes.decode(latents, {})
    # In grey levels of 255. The autoencoder blurs the rims of the shapes.
    assert np.abs(again.pixels.astype(int) - media.pixels).mean() < 4
    # A picture that the autoencoder has drawn itself loses less.
    own = shapes.decode(shapes.to_latents(again), {})
    assert np.abs(own.pixels.astype(int) - again.pixels).mean() < 1.5


def test_latents_depend_on_the_picture_alone_not_on_chance_or_company(shapes, pictures):
    media, _ = pictures
    together = shapes.to_latents(rows(media, slice(11)))  # more than one chunk
    torch.manual_seed(3)
    assert torch.equal(shapes.to_latents(rows(media, slice(11))), together)
    assert torch.allclose(shapes.to_latents(rows(media, slice(10, 11)))[0], together[10], atol=1e-5)


def test_pictures_of_another_size_and_other_media_are_refused_by_name(tiny, tiny_folder):
    wide = Pictures(np.zeros((2, 16, 32, 3), np.uint8))
    with pytest.raises(ConfigError, match="pictures of 16 x 16 pixels, got 16 x 32; bring pictures to that size, or"):
        tiny.to_latents(wide)
    with pytest.raises(MediaError, match="Pictures were wanted, got Sounds"):
        tiny.to_latents(Sounds(np.zeros((2, 1, 9), np.float32), rate=8000))
    assert StableDiffusion.load(tiny_folder, image_size=(16, 32)).to_latents(wide).shape == (2, 4, 8, 16)


def test_the_loss_is_the_mean_squared_error_of_the_networks_own_output(policy):
    x0, cond = start(policy, 3), policy.encode(PROMPTS)
    noise = noise_like(x0)
    a, s = (c.float()[:, None, None, None] for c in policy.schedule.coefficients(TIME))
    seen = []
    hook = policy.trainable.register_forward_hook(
        lambda _module, args, kwargs, result: seen.append((args[0], result.sample)), with_kwargs=True
    )
    loss = denoising_loss(policy, x0, noise, TIME, cond)
    hook.remove()
    ((noised, output),) = seen
    assert torch.allclose(noised, a * x0 + s * noise, atol=1e-6)
    is_v = policy.pipeline.scheduler.config.prediction_type == "v_prediction"
    target = a * noise - s * x0 if is_v else noise
    assert loss.shape == (3,)
    assert torch.allclose(loss, (output - target).square().mean(dim=(1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_plain_training_on_a_fixed_batch_lowers_it(policy, lora):
    if lora:
        with_lora(policy, rank=4, alpha=4)
    learning = [weight for weight in policy.trainable.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=1e-2 if lora else 2e-3)
    x0, cond = start(policy, 3), policy.encode(PROMPTS)
    noise, losses = noise_like(x0), []
    for _ in range(25):
        loss = denoising_loss(policy, x0, noise, TIME, cond).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < (0.97 if lora else 0.8) * losses[0]


def test_the_pretrained_model_knows_its_world_and_which_caption_belongs_to_a_picture(shapes, pictures):
    media, captions = pictures
    x0 = shapes.to_latents(media)
    time = torch.full((len(x0),), 501)
    with torch.no_grad():
        right, wrong = (
            denoising_loss(shapes, x0, noise_like(x0), time, shapes.encode(texts)).mean().item()
            for texts in (captions, captions[1:] + captions[:1])
        )
    assert right < 0.04
    assert wrong > 3 * right


def test_guidance_takes_no_part_in_it(tiny, tiny_xl_folder):
    for inner in (tiny, StableDiffusion.load(tiny_xl_folder)):
        guided, x0 = Guided(inner, scale=5.0), start(inner, 3)
        noise = noise_like(x0)
        got = denoising_loss(guided, x0, noise, TIME, guided.encode(PROMPTS))
        assert torch.equal(got, denoising_loss(inner, x0, noise, TIME, inner.encode(PROMPTS)))
        media = guided.decode(x0, guided.encode(PROMPTS))
        assert np.array_equal(media.pixels, inner.decode(x0, inner.encode(PROMPTS)).pixels)
        assert torch.equal(guided.to_latents(media), inner.to_latents(media))


def test_it_runs_in_the_autocast_regime_of_sampling_and_is_float32(tiny, tiny_folder):
    half = StableDiffusion.load(tiny_folder, compute="bfloat16")
    x0, cond = start(tiny, 3), tiny.encode(PROMPTS)
    ours, exact = (denoising_loss(policy, x0, noise_like(x0), TIME, cond) for policy in (half, tiny))
    assert ours.dtype == torch.float32
    assert 0 < (ours - exact).abs().max().item() < 0.05


def test_a_consistency_model_refuses_what_would_undo_its_distillation(tmp_path):
    folder = write_tiny_consistency_model(tmp_path / "consistency")
    policy = ConsistencyHead(StableDiffusion.load(folder, embedded_scale=8.0))
    x0 = policy.to_latents(Pictures(np.zeros((1, 16, 16, 3), np.uint8)))
    assert x0.shape == (1, 4, 8, 8)
    with pytest.raises(ConfigError, match="distilled, not trained to denoise"):
        denoising_loss(policy, x0, x0, TIME[:1], policy.encode(["a"]))


def test_the_chain_reads_its_points_back_and_learns_the_mean_of_the_data():
    policy = ToyChain()
    points = torch.tensor([[-1.25, 7.5], [0.0, -8.0]])
    assert (policy.to_latents(policy.decode(points, {})) - points).abs().max().item() < 1.3e-4
    with pytest.raises(MediaError, match="a point of the plane is a picture of 1 x 2 pixels, got 2 x 2"):
        policy.to_latents(Pictures(np.zeros((1, 2, 2, 3), np.uint8)))
    optimiser = torch.optim.AdamW(policy.trainable.parameters(), lr=0.05, weight_decay=0.0)
    x0 = torch.tensor([-1.0, 2.0]) + start(policy, 4000)
    noise, time = noise_like(x0), torch.arange(4000) % 5
    for _ in range(150):
        loss = denoising_loss(policy, x0, noise, time, policy.encode([""] * 4000)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    wanted = 0.16 * torch.tensor([-1.0, 2.0]) - 0.35
    assert torch.allclose(policy.trainable.b.detach(), wanted.expand(5, 2), atol=0.07)
