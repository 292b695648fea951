import json
import shutil

import numpy as np
import pytest
import torch

from drover.common.diffusion.kernels.renoise import Ddim, Renoise
from drover.common.errors import ConfigError
from drover.common.policies.guided import Guided
from drover.common.policies.lora import save_lora, with_lora
from drover.common.policies.stable_diffusion.model import StableDiffusionModel
from drover.common.policies.stable_diffusion.policy import StableDiffusion
from tests.common.policies.sampling import PROMPTS, distribution, start, walk
from tests.common.policies.tiny_pipeline import LATENT, TEXT_LENGTH, XL_POOLED, XL_TEXT_WIDTH, write_tiny_xl_pipeline


@pytest.fixture
def tiny_xl(tiny_xl_folder):
    return StableDiffusion.load(tiny_xl_folder)


def plain(folder):
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    # The Euler scheduler's config does not set the final alpha, and DDIM's default differs from Stable Diffusion's.
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, set_alpha_to_one=False, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def test_a_prediction_is_the_unet_call_of_diffusers(tiny_xl, tiny_xl_folder):
    theirs, x, time = plain(tiny_xl_folder), start(tiny_xl, 3), torch.tensor([981, 501, 1])
    text, _, pooled, _ = theirs.encode_prompt(list(PROMPTS), device="cpu", do_classifier_free_guidance=False)
    sizes = theirs._get_add_time_ids((16, 16), (0, 0), (16, 16), text.dtype, XL_POOLED).repeat(3, 1)
    added = {"text_embeds": pooled, "time_ids": sizes}
    wanted = theirs.unet(x, time, encoder_hidden_states=text, added_cond_kwargs=added).sample
    cond = tiny_xl.encode(PROMPTS)
    assert {name: tuple(tensor.shape) for name, tensor in cond.items()} == {
        "text": (3, TEXT_LENGTH, XL_TEXT_WIDTH), "pooled": (3, XL_POOLED), "time_ids": (3, 6),
    }  # fmt: skip
    assert not any(tensor.requires_grad for tensor in cond.values())
    assert (tiny_xl.predict(x, time, cond).noise - wanted).abs().max().item() < 1e-5
    # Each of the three conditions changes the prediction; else the comparison above would not test them.
    for name in ("text", "pooled", "time_ids"):
        changed = tiny_xl.predict(x, time, {**cond, name: cond[name] + 1}).noise
        assert (changed - wanted).abs().max().item() > 1e-4


@pytest.mark.parametrize("force_zeros", [True, False])
def test_ten_deterministic_steps_are_those_of_diffusers(tiny_xl_folder, tmp_path, force_zeros):
    folder = tiny_xl_folder
    if not force_zeros:
        folder = write_tiny_xl_pipeline(tmp_path / "words", force_zeros_for_empty_prompt=False)
    policy = Guided(StableDiffusion.load(folder), scale=5.0)
    noise, cond = start(policy, 3), policy.encode(PROMPTS)
    assert bool((cond["uncond.text"] == 0).all() and (cond["uncond.pooled"] == 0).all()) == force_zeros
    *_, (_, _, latents, _) = walk(policy, Renoise(10, Ddim(eta=0.0)), noise, cond)
    same = {"num_inference_steps": 10, "guidance_scale": 5.0, "eta": 0.0, "latents": noise}
    theirs = plain(folder)
    wanted = theirs(list(PROMPTS), output_type="latent", **same).images
    assert ((latents - wanted).abs().max() / wanted.abs().max()).item() < 1e-5
    picture = (theirs(list(PROMPTS), output_type="np", **same).images * 255).round()
    assert picture.std() > 5
    assert np.abs(policy.decode(latents, {}).pixels.astype(int) - picture).max() <= 1


def test_the_sizes_told_are_those_of_the_picture(tiny_xl_folder):
    wide = StableDiffusion.load(tiny_xl_folder, image_size=(16, 32))
    assert wide.latent_shape == (4, 8, 16)
    assert wide.encode(["a", "b"])["time_ids"].tolist() == [[16, 32, 0, 0, 16, 32]] * 2


def test_the_scheduler_of_xl_describes_the_same_path(tiny_xl, tiny):
    time = torch.arange(-1, 1000)
    for ours, of_sd in zip(tiny_xl.schedule.coefficients(time), tiny.schedule.coefficients(time), strict=True):
        assert torch.equal(ours, of_sd)


def test_unchanged_weights_score_what_they_sampled_and_all_of_the_unet_learns(tiny_xl):
    policy, kernel = Guided(tiny_xl, scale=3.0), Renoise(3, Ddim())
    cond = policy.encode(PROMPTS)
    for step, x, drawn, stored in walk(policy, kernel, start(policy, 3), cond):
        again = distribution(policy, kernel, x, step, cond).log_prob(drawn)
        assert (again - stored).abs().max().item() < 1e-6
    again.sum().backward()
    assert all(
        weight.grad is not None and bool(weight.grad.isfinite().all()) for weight in policy.trainable.parameters()
    )
    parts = (tiny_xl.pipeline.vae, tiny_xl.pipeline.text_encoder, tiny_xl.pipeline.text_encoder_2)
    assert not any(weight.requires_grad for part in parts for weight in part.parameters())


def test_the_autoencoder_stays_in_float32_and_sizes_are_told_exactly_beside_half_precision(tiny_xl_folder):
    half = StableDiffusion.load(tiny_xl_folder, dtype="bfloat16", compute="bfloat16")
    assert half.pipeline.vae.dtype == torch.float32
    assert half.pipeline.unet.dtype == half.pipeline.text_encoder_2.dtype == torch.bfloat16
    cond, x = half.encode(PROMPTS[:1]), start(half, 1)
    assert (cond["text"].dtype, cond["time_ids"].dtype) == (torch.bfloat16, torch.float32)
    prediction = half.predict(x, torch.tensor([501]), cond)
    exact = StableDiffusion.load(tiny_xl_folder)
    wanted = exact.predict(x, torch.tensor([501]), exact.encode(PROMPTS[:1]))
    assert prediction.noise.dtype == torch.float32
    assert 0 < (prediction.noise - wanted.noise).abs().max().item() < 0.1
    assert np.array_equal(half.decode(x, {}).pixels, exact.decode(x, {}).pixels)


def test_latents_normalised_per_channel_decode_as_in_diffusers(tiny_xl, tiny_xl_folder):
    mean, std = [0.5, -0.2, 0.1, 0.3], [2.0, 3.0, 0.5, 1.5]
    theirs = plain(tiny_xl_folder)
    for pipeline in (theirs, tiny_xl.pipeline):
        pipeline.vae.register_to_config(latents_mean=mean, latents_std=std)
    policy, noise = StableDiffusion(tiny_xl.pipeline), start(tiny_xl, 1)
    same = {"num_inference_steps": 1, "guidance_scale": 1.0, "latents": noise}
    latents = theirs("a", output_type="latent", **same).images
    picture = (theirs("a", output_type="np", **same).images * 255).round()
    assert np.abs(policy.decode(latents, {}).pixels.astype(int) - picture).max() <= 1


def test_a_described_model_is_built_by_what_the_folder_is(tiny_xl_folder, tiny_folder):
    names = {}
    for folder in (tiny_folder, tiny_xl_folder):
        model = StableDiffusionModel(checkpoint=str(folder), guidance=3.0)
        model.check()
        policy = model.build("cpu")
        assert policy.latent_shape == LATENT
        names[folder] = {name for name in policy.encode(["a"]) if not name.startswith("uncond.")}
    assert names == {tiny_folder: {"text"}, tiny_xl_folder: {"text", "pooled", "time_ids"}}


def test_adapters_sit_on_every_attention_of_a_deeper_transformer(tiny_xl, tmp_path):
    with_lora(tiny_xl, rank=2, alpha=2)
    learning = [name for name, weight in tiny_xl.trainable.named_parameters() if weight.requires_grad]
    attentions = [name for name, module in tiny_xl.trainable.named_modules() if name.endswith((".attn1", ".attn2"))]
    assert len(learning) == len(attentions) * 4 * 2
    save_lora(tiny_xl, tmp_path / "lora", base="some/base")
    assert {file.name for file in (tmp_path / "lora").iterdir()} == {"pytorch_lora_weights.safetensors", "README.md"}


def test_a_folder_without_its_second_tokenizer_or_an_encoder_is_one_clear_error(tiny_xl_folder, tmp_path):
    wordless = shutil.copytree(tiny_xl_folder, tmp_path / "wordless")
    shutil.rmtree(wordless / "tokenizer_2")
    with pytest.raises(ConfigError, match=r"wordless/tokenizer_2' holds neither tokenizer.json nor vocab.json"):
        StableDiffusion.load(wordless)
    refiner = shutil.copytree(tiny_xl_folder, tmp_path / "refiner")
    index = json.loads((refiner / "model_index.json").read_text())
    (refiner / "model_index.json").write_text(
        json.dumps({**index, "text_encoder": [None, None], "tokenizer": [None, None]})
    )
    with pytest.raises(ConfigError, match="has no text_encoder, as refiners do not"):
        StableDiffusion.load(refiner)


def test_a_text_encoder_of_another_width_is_one_clear_error(tiny_xl_folder, tmp_path):
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_xl_folder)
    config = {**pipeline.unet.config, "projection_class_embeddings_input_dim": 64}
    pipeline.unet = UNet2DConditionModel.from_config(config)
    with pytest.raises(ConfigError, match="takes 64 numbers.*text_encoder_2's 24 and six sizes make 72"):
        StableDiffusion(pipeline)
