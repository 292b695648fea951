import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from drover.common.diffusion.kernels.renoise import Ddim, Renoise
from drover.common.errors import ConfigError
from drover.common.policies.guided import Guided
from drover.common.policies.stable_diffusion.policy import StableDiffusion
from tests.common.policies.sampling import PROMPTS, distribution, start, walk
from tests.common.policies.tiny_pipeline import LATENT, TEXT_LENGTH, TEXT_WIDTH, write_tiny_pipeline


def plain(folder):
    """The pipeline as any user of diffusers opens it."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_ten_deterministic_steps_are_those_of_diffusers(either_folder):
    policy = Guided(StableDiffusion.load(either_folder), scale=5.0)
    noise = start(policy, 3)
    *_, (_, _, latents, _) = walk(policy, Renoise(10, Ddim(eta=0.0)), noise, policy.encode(PROMPTS))
    common = {"num_inference_steps": 10, "guidance_scale": 5.0, "eta": 0.0, "latents": noise}
    theirs = plain(either_folder)
    wanted = theirs(list(PROMPTS), output_type="latent", **common).images
    # Latents of random weights grow to 40; relative to their size, as the schedules differ by float32 rounding.
    assert ((latents - wanted).abs().max() / wanted.abs().max()).item() < 1e-5
    picture = (theirs(list(PROMPTS), output_type="np", **common).images * 255).round()
    assert np.abs(policy.decode(latents, {}).pixels.astype(int) - picture).max() <= 1


def write_spaced_pipeline(folder, spacing):
    """A pipeline whose scheduler has that spacing: DDIM's, or for linspace Euler's, as it is Euler's own spacing."""
    from diffusers import EulerDiscreteScheduler

    if spacing != "linspace":
        return write_tiny_pipeline(folder, timestep_spacing=spacing, set_alpha_to_one=True)
    pipeline = plain(write_tiny_pipeline(folder))
    # Settings of DDIM stay in the file, as they do in SDXL's; Euler's scheduler reads none of them.
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="linspace")
    pipeline.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("spacing", "steps", "error"),
    [
        ("leading", 10, 1e-5),
        ("leading", 7, 1e-5),
        ("trailing", 10, 1e-5),
        ("trailing", 7, 2e-2),  # 1000 / 7 is no whole number, and DDIM's steps of 142 miss its own times by 1
        ("linspace", 10, 1e-4),
        ("linspace", 7, 2e-3),  # 999 / 6 is none either, and Euler's times are not rounded
    ],
)
def test_pictures_are_those_of_the_pipeline_whatever_its_times_are(tmp_path, spacing, steps, error):
    folder = write_spaced_pipeline(tmp_path / "pipeline", spacing)
    policy, theirs, noise = StableDiffusion.load(folder), plain(folder), torch.randn(3, *LATENT)
    cond = policy.encode(PROMPTS)
    *_, (_, _, latents, _) = walk(policy, Renoise(steps, Ddim(eta=0.0)), noise, cond)
    theirs.scheduler.set_timesteps(steps)
    if spacing == "linspace":  # Euler's chains begin at x0 + sigma noise, here at a x0 + s noise
        noise = noise * (1 + theirs.scheduler.sigmas[0] ** -2).sqrt()
    given = {"num_inference_steps": steps, "guidance_scale": 1.0, "latents": noise}
    wanted = theirs(list(PROMPTS), output_type="latent", **given).images
    assert ((latents - wanted).abs().max() / wanted.abs().max()).item() < error
    picture = (theirs(list(PROMPTS), output_type="np", **given).images * 255).round()
    assert np.abs(policy.decode(latents, cond).pixels.astype(int) - picture).max() <= (1 if error < 1e-2 else 2)


def test_unchanged_weights_score_what_they_sampled(either_folder):
    for policy in (StableDiffusion.load(either_folder), Guided(StableDiffusion.load(either_folder), scale=3.0)):
        kernel, cond = Renoise(4, Ddim()), policy.encode(PROMPTS)
        for step, x, drawn, stored in walk(policy, kernel, start(policy, 3), cond):
            again = distribution(policy, kernel, x, step, cond).log_prob(drawn)
            assert again.requires_grad
            assert (again - stored).abs().max().item() < 1e-6


def test_a_row_is_predicted_alike_alone_and_in_a_batch(tiny):
    x, cond = start(tiny, 3), tiny.encode(PROMPTS)
    time = torch.tensor([981, 501, 1])
    together = tiny.predict(x, time, cond).noise
    for i in range(3):
        alone = tiny.predict(x[i : i + 1], time[i : i + 1], {"text": cond["text"][i : i + 1]}).noise
        assert (together[i] - alone[0]).abs().max().item() < 1e-5


def test_only_the_unet_learns_and_dropout_is_off(tiny_folder):
    pipeline = plain(tiny_folder)
    pipeline.unet.train()
    tiny = StableDiffusion(pipeline)
    unet = tiny.trainable
    assert all(weight.requires_grad for weight in unet.parameters())
    frozen = [*tiny.pipeline.vae.parameters(), *tiny.pipeline.text_encoder.parameters()]
    assert not any(weight.requires_grad for weight in frozen)
    assert any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in unet.modules())
    assert not any(module.training for module in unet.modules())


def test_every_weight_of_the_unet_gets_a_gradient(tiny):
    tiny.predict(start(tiny, 1), torch.tensor([501]), tiny.encode(PROMPTS[:1])).noise.square().mean().backward()
    assert all(weight.grad is not None and bool(weight.grad.isfinite().all()) for weight in tiny.trainable.parameters())


def test_embeddings_are_those_of_diffusers(tiny, tiny_folder):
    cond = tiny.encode(PROMPTS)
    assert cond["text"].shape == (3, TEXT_LENGTH, TEXT_WIDTH)
    assert not cond["text"].requires_grad
    wanted, _ = plain(tiny_folder).encode_prompt(list(PROMPTS), "cpu", 1, False)
    assert (cond["text"] - wanted).abs().max().item() < 1e-6


def test_embeddings_first_made_while_sampling_can_be_trained_on(tiny):
    policy = Guided(tiny, scale=2.0)
    with torch.inference_mode():
        policy.encode(PROMPTS)
    policy.predict(start(tiny, 3), torch.tensor([5, 501, 981]), policy.encode(PROMPTS)).noise.sum().backward()
    assert tiny.trainable.conv_in.weight.grad.abs().max().item() > 0


def test_each_prompt_is_encoded_once(tiny):
    first = tiny.encode(PROMPTS)["text"]
    calls = []
    hook = tiny.pipeline.text_encoder.register_forward_hook(
        lambda _module, _given, result: calls.append(len(result[0]))
    )
    again = tiny.encode([PROMPTS[1], "something new", "something new", PROMPTS[0]])["text"]
    hook.remove()
    assert calls == [1]
    assert torch.equal(again[0], first[1])
    assert torch.equal(again[3], first[0])
    assert torch.equal(again[1], again[2])


def test_bfloat16_compute_returns_float32_close_to_it_and_scores_what_it_sampled(tiny, tiny_folder):
    half = StableDiffusion.load(tiny_folder, compute="bfloat16")
    x, cond, time = start(tiny, 2), tiny.encode(PROMPTS[:2]), torch.tensor([981, 1])
    ours, exact = half.predict(x, time, cond), tiny.predict(x, time, cond)
    assert ours.noise.dtype == ours.x0.dtype == torch.float32
    assert 0 < (ours.noise - exact.noise).abs().max().item() < 0.1
    assert next(half.trainable.parameters()).dtype == torch.float32
    kernel = Renoise(3, Ddim())
    for step, state, drawn, stored in walk(half, kernel, x, cond):
        again = distribution(half, kernel, state, step, cond).log_prob(drawn)
        assert (again - stored).abs().max().item() < 1e-6


def test_weights_kept_in_bfloat16_predict_and_decode(tiny_folder):
    half = StableDiffusion.load(tiny_folder, dtype="bfloat16")
    x = start(half, 1)
    assert half.predict(x, torch.tensor([501]), half.encode(PROMPTS[:1])).noise.dtype == torch.float32
    assert half.decode(x, {}).pixels.shape == (1, 16, 16, 3)


def test_media_are_decoded_in_chunks_without_a_seam(tiny):
    x = start(tiny, 11)
    pixels = tiny.decode(x, {}).pixels
    assert pixels.shape == (11, 16, 16, 3)
    assert np.abs(pixels[10].astype(int) - tiny.decode(x[10:], {}).pixels[0]).max() <= 1


def test_latents_have_the_unets_size_unless_an_image_size_is_given(tiny, tiny_folder):
    assert tiny.latent_shape == LATENT
    wide = StableDiffusion.load(tiny_folder, image_size=(16, 32))
    assert wide.latent_shape == (4, 8, 16)
    x = start(wide, 1)
    assert wide.decode(wide.predict(x, torch.tensor([501]), wide.encode(["a"])).x0, {}).pixels.shape == (1, 16, 32, 3)
    with pytest.raises(ConfigError, match=r"\(16, 30\).*multiples of 4"):
        StableDiffusion.load(tiny_folder, image_size=(16, 30))


def test_a_saved_pipeline_is_opened_by_diffusers_with_the_learned_weights(tiny, tmp_path):
    folder = tmp_path / "result"
    tiny.save_pipeline(folder)
    with torch.no_grad():
        tiny.trainable.conv_out.bias += 1.0
    tiny.save_pipeline(folder)
    assert [entry.name for entry in tmp_path.iterdir()] == ["result"]
    x, text, time = start(tiny, 1), tiny.encode(["a"])["text"], torch.tensor([501])
    theirs = plain(folder).unet(x, time, encoder_hidden_states=text).sample
    assert (theirs - tiny.predict(x, time, {"text": text}).noise).abs().max().item() < 1e-6


def test_a_save_that_fails_leaves_the_folder_as_it_was(tiny, tmp_path):
    folder = tmp_path / "result"
    tiny.save_pipeline(folder)
    before = (folder / "model_index.json").read_bytes()
    tiny.trainable.register_buffer("unsaveable", torch.zeros(2, 2).to_sparse())
    with pytest.raises(Exception, match=r"(?i)sparse|storage|contiguous|stride"):
        tiny.save_pipeline(folder)
    assert [entry.name for entry in tmp_path.iterdir()] == ["result"]
    assert (folder / "model_index.json").read_bytes() == before


@pytest.mark.parametrize(
    ("part", "damage", "said"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "removed", "no file named diffusion_pytorch_model.safetensors"),
        ("unet/diffusion_pytorch_model.safetensors", "cut", "unet/diffusion_pytorch_model.safetensors"),
        ("text_encoder/model.safetensors", "cut", "incomplete metadata"),
        ("text_encoder/model.safetensors", "removed", "no file named model.safetensors"),
        ("tokenizer/tokenizer.json", "removed", "neither tokenizer.json nor vocab.json"),
        ("vae/config.json", "removed", "no file named config.json"),
        ("scheduler/scheduler_config.json", "removed", "scheduler_config.json"),
        ("unet/config.json", "cut", "unet/config.json' is not a valid JSON"),
        ("model_index.json", "cut", "model_index.json' is damaged"),
        ("model_index.json", "removed", "holds no model_index.json"),
    ],
)
def test_an_incomplete_checkpoint_is_one_clear_error(tiny_folder, tmp_path, part, damage, said):
    folder = shutil.copytree(tiny_folder, tmp_path / "broken")
    file = folder / part
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ConfigError, match="broken.*; ") as caught:
        StableDiffusion.load(folder)
    assert said in str(caught.value)


def test_a_folder_that_holds_no_checkpoint_is_refused(tmp_path, tiny_folder):
    with pytest.raises(ConfigError, match=r"no checkpoint folder '.*absent'; give a folder"):
        StableDiffusion.load(tmp_path / "absent")
    with pytest.raises(ConfigError, match="cannot load 'nobody/nothing'.*check the id and the network"):
        StableDiffusion.load("nobody/nothing")
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    index = other / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "FluxPipeline"))
    with pytest.raises(ConfigError, match="holds a FluxPipeline, wanted one of StableDiffusionPipeline, "):
        StableDiffusion.load(other)


def test_a_scheduler_that_clips_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="thresholding=True"):
        StableDiffusion.load(write_tiny_pipeline(tmp_path / "clips", thresholding=True))


def test_loading_prints_nothing(tiny_folder):
    program = (
        "from drover.common.policies.stable_diffusion.policy import StableDiffusion; import sys; "
        "assert 'diffusers' not in sys.modules; StableDiffusion.load(sys.argv[1])"
    )
    told = subprocess.run([sys.executable, "-c", program, str(tiny_folder)], capture_output=True, text=True, check=True)
    assert told.stdout == ""
    assert told.stderr == ""
