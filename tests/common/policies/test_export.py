"""Plain diffusers, without this project, draws the same pictures from the pipelines and adapters that a run saves."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from drover.common.diffusion.kernels.renoise import Ddim, Renoise
from drover.common.policies.guided import Guided
from drover.common.policies.lora import base_of, load_lora
from drover.common.policies.model import Lora
from drover.common.policies.stable_diffusion.model import StableDiffusionModel
from drover.common.policies.stable_diffusion.policy import StableDiffusion
from drover.worlds.plane.model import ToyModel
from tests.common.policies.sampling import PROMPTS, start, walk

STEPS, GUIDANCE = 4, 3.0

# argv: a JSON list of [name, base pipeline, adapters or null], and the file to write.
PLAIN = """
import json, sys, numpy as np, torch
from diffusers import DDIMScheduler, DiffusionPipeline
drawn = {}
for name, base, adapters in json.loads(sys.argv[1]):
    pipe = DiffusionPipeline.from_pretrained(base)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, set_alpha_to_one=False, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    if adapters:
        pipe.load_lora_weights(adapters)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    pictures = pipe("a red circle", num_inference_steps=%d, guidance_scale=%f, latents=noise, output_type="np").images
    drawn[name] = (pictures * 255).round().astype(np.uint8)
    drawn[name + ".class"] = type(pipe).__name__
np.savez(sys.argv[2], **drawn)
ours = {"common", "worlds", "actors", "learner", "reward_servers", "deploy", "tests", "benchmarks"}
assert not ours & {name.partition(".")[0] for name in sys.modules}, ours & set(sys.modules)
""" % (STEPS, GUIDANCE)  # noqa: UP031 (braces are the program's own)


def trained(model: StableDiffusionModel, seed: int) -> dict[str, torch.Tensor]:
    """Change the weights as training would: each by a twentieth of its size, the zeros of adapters by more."""
    draws = torch.Generator().manual_seed(seed)
    moved = {}
    for name, weight in sorted(model.build("cpu").trainable.named_parameters()):
        if weight.requires_grad:
            scale = 0.3 if ".lora_B." in name else 0.05 * weight.detach().std(correction=0)
            moved[name] = weight.detach() + scale * torch.randn(weight.shape, generator=draws)
    return moved


def load(model: StableDiffusionModel, weights: dict[str, torch.Tensor]) -> Guided:
    policy = model.build("cpu")
    with torch.no_grad():
        for name, weight in policy.trainable.named_parameters():
            if name in weights:
                weight.copy_(weights[name])
    assert isinstance(policy, Guided)
    return policy


def draw(policy: Guided) -> np.ndarray:
    """[1, 16, 16, 3] uint8, by our own loop."""
    kernel, cond = Renoise(STEPS, Ddim(eta=0.0)), policy.encode(PROMPTS[:1])
    *_, (_, _, x0, _) = walk(policy, kernel, start(policy, 1), cond)
    return policy.decode(x0, {}).pixels


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def results(tiny_folder, tiny_xl_folder, out):
    """{name: (ours, plain diffusers', before training)}, all of the second by one foreign process."""
    jobs, ours, before = [], {}, {}
    for family, base in (("sd", tiny_folder), ("xl", tiny_xl_folder)):
        for lora in (None, Lora(rank=4, alpha=12)):
            model = StableDiffusionModel(checkpoint=str(base), guidance=GUIDANCE, lora=lora)
            weights, name = trained(model, 5), f"{family}-{'lora' if lora else 'full'}"
            written = model.save(weights, out / family)
            assert written == out / family / ("lora" if lora else "pipeline")
            jobs.append([name, *map(str, (base, written))] if lora else [name, str(written), None])
            ours[name], before[name] = draw(load(model, weights)), draw(model.build("cpu"))
    program = [sys.executable, "-c", PLAIN, json.dumps(jobs), str(out / "drawn.npz")]
    subprocess.run(program, check=True, capture_output=True, cwd=out)
    theirs = np.load(out / "drawn.npz")
    return {name: (ours[name], theirs[name], before[name], str(theirs[f"{name}.class"])) for name in ours}


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("family", ["sd", "xl"])
def test_plain_diffusers_draws_the_same_picture(results, family, kind):
    ours, theirs, before, pipeline = results[f"{family}-{kind}"]
    assert pipeline == {"sd": "StableDiffusionPipeline", "xl": "StableDiffusionXLPipeline"}[family]
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    # Training moved the picture, and pictures are no flat grey; else the comparison would test nothing.
    assert np.abs(ours.astype(int) - before).max() > 5
    assert ours.std() > 5


@pytest.mark.parametrize("family", ["sd", "xl"])
def test_our_own_sampler_finds_the_base_of_adapters_and_draws_the_same_picture(results, out, family):
    ours, _, before, _ = results[f"{family}-lora"]
    folder = out / family / "lora"
    policy = StableDiffusionModel(checkpoint=base_of(folder), guidance=GUIDANCE).build("cpu")
    assert isinstance(policy, Guided) and np.array_equal(draw(policy), before)
    load_lora(policy, folder)
    assert np.abs(draw(policy).astype(int) - ours).max() <= 1


def test_a_consistency_model_is_saved_under_its_own_pipeline_class(tmp_path):
    from tests.common.policies.tiny_pipeline import write_tiny_consistency_model

    folder = write_tiny_consistency_model(tmp_path / "base")
    StableDiffusion.load(folder, embedded_scale=8.0).save_pipeline(tmp_path / "result")
    index = json.loads((tmp_path / "result" / "model_index.json").read_text())
    assert index["_class_name"] == "LatentConsistencyModelPipeline"


def test_the_chain_is_saved_as_one_file(tmp_path):
    from safetensors.torch import load_file

    written = ToyModel().save({"b": torch.ones(5, 2)}, tmp_path)
    assert written == tmp_path / "toy.safetensors"
    assert torch.equal(load_file(written)["b"], torch.ones(5, 2))
