import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from drover.worlds.shapes import PIPELINE, prompts, truth

# Runs where none of our packages can be imported, without network.
LOAD_AND_DRAW = """
import sys, numpy as np, torch
from diffusers import StableDiffusionPipeline
torch.set_num_threads(1)
pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1])
pipeline.set_progress_bar_config(disable=True)
pictures = pipeline(
    sys.argv[3:], num_inference_steps=10, eta=1.0, guidance_scale=3.0,
    generator=torch.Generator().manual_seed(7), output_type="np",
).images
np.save(sys.argv[2], (pictures * 255).round().astype(np.uint8))
assert not any(name.partition(".")[0] in ("worlds", "torchvision") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(PIPELINE / "tokenizer")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[list[str], np.ndarray]:
    """Each of the 18 single things and 18 pairs, drawn by plain diffusers in its own process."""
    folder = tmp_path_factory.mktemp("drawn")
    texts = [prompts.kind_prompt(kind) for kind in prompts.KINDS] + list(prompts.relation_prompts("train")[::48])
    environment = {"HF_HUB_OFFLINE": "1", "PATH": "", "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOAD_AND_DRAW, str(PIPELINE), str(folder / "pictures.npy"), *texts]
    subprocess.run(command, check=True, cwd=folder, env=environment)
    return texts, np.load(folder / "pictures.npy")


def test_the_folder_is_smaller_than_8_mb():
    assert sum(file.stat().st_size for file in PIPELINE.rglob("*") if file.is_file()) < 8e6


def test_weights_are_safetensors_only():
    suffixes = {file.suffix for file in PIPELINE.rglob("*") if file.is_file()}
    assert suffixes <= {".json", ".txt", ".safetensors"}


def test_the_unet_has_about_a_million_parameters():
    from safetensors import safe_open

    with safe_open(PIPELINE / "unet" / "diffusion_pytorch_model.safetensors", "pt") as weights:
        sizes = [int(np.prod(weights.get_slice(name).get_shape())) for name in weights.keys()]  # noqa: SIM118
    assert 0.8e6 < sum(sizes) < 1.5e6


def test_the_noise_schedule_is_stable_diffusions():
    config = json.loads((PIPELINE / "scheduler" / "scheduler_config.json").read_text())
    wanted = {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }
    assert {key: config[key] for key in wanted} == wanted


def test_every_word_is_one_token_of_its_own(tokenizer):
    ids = [tokenizer(word).input_ids for word in prompts.VOCABULARY]
    assert {len(word_ids) for word_ids in ids} == {3}
    assert len({word_ids[1] for word_ids in ids}) == len(prompts.VOCABULARY)


def test_a_letter_outside_the_vocabulary_is_unknown_and_not_the_end(tokenizer):
    assert tokenizer("a z").input_ids[2] == tokenizer.unk_token_id
    assert tokenizer.unk_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id)


def test_every_prompt_fits_the_text_encoder(tokenizer):
    assert max(map(len, tokenizer(list(prompts.every_prompt())).input_ids)) == 10 < tokenizer.model_max_length


def test_plain_diffusers_draws_the_asked_colour(drawn):
    texts, pictures = drawn
    right = [
        {colour for _, colour in prompts.parse(text).kinds} <= {thing.colour for thing in truth.read(picture).things}
        for text, picture in zip(texts, pictures, strict=True)
    ]
    assert np.mean(right[:18]) >= 0.8
    assert np.mean(right[18:]) >= 0.7


def test_latents_of_the_world_have_unit_deviation():
    from diffusers import AutoencoderKL

    from drover.worlds.shapes.build import train_pipeline

    torch.set_num_threads(1)
    vae = AutoencoderKL.from_pretrained(PIPELINE / "vae")
    with torch.no_grad():
        pixels = train_pipeline.as_pixels(train_pipeline.make_data(400).pictures)
        latents = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
    assert latents.shape == (400, 4, 8, 8)
    assert latents.std().item() == pytest.approx(1, abs=0.05)
    assert latents.mean((0, 2, 3)).abs().max().item() < 0.1
