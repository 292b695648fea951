"""Descriptions of models: their own checks, the policies they build, and the weights of a run."""

import json
import shutil

import pytest
import torch

from drover.common.errors import ConfigError
from drover.common.policies.consistency import ConsistencyHead
from drover.common.policies.guided import Guided
from drover.common.policies.model import Lora, SavedLora
from drover.common.policies.stable_diffusion.checkpoints import (
    DIFFUSERS,
    PipelineClass,
    check_pipeline,
    open_pipeline,
)
from drover.common.policies.stable_diffusion.model import StableDiffusionModel
from drover.common.policies.stable_diffusion.policy import StableDiffusion
from drover.worlds.plane.model import ToyModel
from tests.common.policies.tiny_pipeline import write_tiny_consistency_model


@pytest.fixture(scope="module")
def consistency_folder(tmp_path_factory):
    return write_tiny_consistency_model(tmp_path_factory.mktemp("tiny") / "consistency", timestep_scaling=5.0)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"guidance": 0.0}, "guidance must be a finite number of at least 1, which is none; got 0.0"),
        ({"guidance": float("nan")}, "got nan"),
        ({"guidance": float("inf")}, "got inf"),
        ({"compute": "float16"}, "compute must be one of float32, bfloat16; got 'float16'"),
        ({"image_size": (0, 512)}, r"image_size is \(height, width\) in pixels, both positive; got \(0, 512\)"),
    ],
)
def test_a_model_that_cannot_be_is_refused_as_it_is_described(fields, complaint):
    with pytest.raises(ConfigError, match=complaint):
        StableDiffusionModel(**{"checkpoint": "x", "guidance": 1.0, **fields})


@pytest.mark.parametrize(("rank", "alpha"), [(-1, 1.0), (0, 1.0), (4, 0.0), (4, -1.0), (4, float("nan"))])
def test_adapters_that_cannot_be_are_refused_as_they_are_described(rank, alpha):
    with pytest.raises(
        ConfigError, match=rf"a rank of at least 1 and a positive alpha, got rank {rank} and alpha {alpha}"
    ):
        Lora(rank=rank, alpha=alpha)


def test_a_consistency_model_opens_with_its_head_and_is_told_its_guidance(consistency_folder):
    model = StableDiffusionModel(checkpoint=str(consistency_folder), guidance=8.0)
    model.check()
    policy = model.build("cpu")
    assert isinstance(policy, ConsistencyHead) and isinstance(policy.policy, StableDiffusion)
    told = ConsistencyHead(StableDiffusion.load(consistency_folder, embedded_scale=8.0), time_scaling=5.0)
    x, time = torch.ones(1, 4, 8, 8), torch.tensor([499])
    assert torch.equal(policy.predict(x, time, policy.encode(["a"])).x0, told.predict(x, time, told.encode(["a"])).x0)


def test_check_says_that_a_consistency_model_must_be_told_a_guidance_scale(consistency_folder):
    model = StableDiffusionModel(checkpoint=str(consistency_folder), guidance=1.0)
    for ask in (model.check, lambda: model.build("cpu")):
        with pytest.raises(ConfigError, match="takes its guidance scale as an input.*; set guidance to the scale"):
            ask()


def test_guidance_of_a_sampler_cannot_be_put_on_a_model_that_is_told_its_scale(consistency_folder):
    policy = StableDiffusionModel(checkpoint=str(consistency_folder), guidance=8.0).build("cpu")
    assert policy.empty is None
    with pytest.raises(ConfigError, match="no empty condition to be guided away from; set the scale as the guidance"):
        Guided(policy, scale=2.0)


def test_a_damaged_config_is_refused_by_check(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "damaged")
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"unet/config.json' is damaged"):
        StableDiffusionModel(checkpoint=str(folder), guidance=1.0).check()


def test_only_a_model_with_adapters_says_that_it_trains_them(tiny_folder, tmp_path):
    bare = StableDiffusionModel(checkpoint=str(tiny_folder), guidance=1.0)
    loras = (None, Lora(rank=2, alpha=2.0), SavedLora(folder=tmp_path))
    models = [StableDiffusionModel(checkpoint=bare.checkpoint, guidance=1.0, lora=lora) for lora in loras]
    assert [model.adapters for model in (*models, ToyModel())] == [False, True, False, False]
    assert [bare.compute, ToyModel().compute] == ["float32", "float32"]


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4.0)])
def test_the_model_of_a_run_has_the_weights_that_the_run_saved_and_all_else_of_its_recipe(tiny_folder, tmp_path, lora):
    model = StableDiffusionModel(checkpoint=str(tiny_folder), guidance=3.0, image_size=(16, 32), lora=lora)
    with pytest.raises(ConfigError, match=r"holds neither pipeline/ nor lora/"):
        model.of_run(tmp_path)
    policy = model.build("cpu")
    learned = {name: p for name, p in policy.trainable.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in learned.values():
            parameter += 0.05
    model.save(learned, tmp_path)
    again = model.of_run(tmp_path).build("cpu")
    assert isinstance(again, Guided) and again.scale == 3.0 and again.latent_shape == (4, 8, 16)
    x, time = torch.ones(1, *again.latent_shape), torch.tensor([499])
    both = [each.predict(x, time, each.encode(["a"])).noise for each in (policy, again)]
    assert torch.allclose(*both, atol=1e-5)
    fresh = model.build("cpu")
    assert not torch.allclose(both[0], fresh.predict(x, time, fresh.encode(["a"])).noise, atol=1e-3)


def test_the_chain_of_a_run_has_the_shifts_that_the_run_saved(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no toy.safetensors"):
        ToyModel().of_run(tmp_path)
    ToyModel().save({"b": torch.full((5, 2), 0.25)}, tmp_path)
    assert (ToyModel().of_run(tmp_path).build("cpu").trainable.b == 0.25).all()


def test_a_family_opens_the_pipeline_classes_it_names(tiny_folder):
    kind = json.loads((tiny_folder / "model_index.json").read_text())["_class_name"]
    networks = {"unet": ("UNet2DConditionModel", DIFFUSERS)}
    assert check_pipeline(tiny_folder, {kind: PipelineClass(networks)}) == tiny_folder
    with pytest.raises(ConfigError, match=f"holds a {kind}, wanted one of StableDiffusion3Pipeline"):
        open_pipeline(tiny_folder, {"StableDiffusion3Pipeline": PipelineClass(networks)})
    other = {kind: PipelineClass({"unet": ("UNet3DConditionModel", DIFFUSERS)})}
    with pytest.raises(ConfigError, match="unet of .* is of class UNet2DConditionModel, wanted UNet3DConditionModel"):
        check_pipeline(tiny_folder, other)
