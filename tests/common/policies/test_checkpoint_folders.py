"""Diffusers folders as people have them: training opens each folder that `check` accepts; others are refused in a sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from drover.common.errors import ConfigError
from drover.common.policies.stable_diffusion.model import StableDiffusionModel
from drover.common.policies.stable_diffusion.policy import FAMILY, load_pipeline
from tests.common.policies.tiny_pipeline import write_tiny_pipeline

UNET = "unet/diffusion_pytorch_model"
WEIGHTS = (UNET, "vae/diffusion_pytorch_model", "text_encoder/model")
JSON_FILES = (
    "model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json", "tokenizer/tokenizer.json",
    "scheduler/scheduler_config.json",
)  # fmt: skip


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_folder, tmp_path / "model")


def edit(path: Path, **changes: Any) -> None:
    """Change entries of a JSON object; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def check(folder: Path | str) -> None:
    StableDiffusionModel(checkpoint=str(folder), guidance=1.0).check()


def refused(folder: Path | str, said: str) -> None:
    """Assert that `check` and opening refuse the folder with the same words."""
    for reader in (check, load_pipeline):
        with pytest.raises(ConfigError, match=said):
            reader(folder)


def only_half(folder: Path, *names: str) -> None:
    for name in names:
        (folder / f"{name}.safetensors").rename(folder / f"{name}.fp16.safetensors")


@pytest.mark.parametrize("names", [WEIGHTS, (UNET,)], ids=["every network", "one network"])
def test_networks_that_come_in_half_precision_only_are_opened(folder, names):
    plain = load_pipeline(folder)
    only_half(folder, *names)
    check(folder)
    opened = load_pipeline(folder)
    for part in ("unet", "vae", "text_encoder"):
        wanted, found = (getattr(one, part).state_dict() for one in (plain, opened))
        assert all(torch.equal(wanted[name], tensor) for name, tensor in found.items())


def test_weights_in_full_precision_are_taken_where_both_are_there(folder):
    shutil.copy(folder / f"{UNET}.safetensors", folder / f"{UNET}.fp16.safetensors")
    (folder / f"{UNET}.fp16.safetensors").write_bytes(b"never opened")
    check(folder)
    assert load_pipeline(folder).unet is not None


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_weights_in_several_files_are_opened_and_a_missing_one_is_named(folder, variant):
    unet = load_pipeline(folder).unet
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet", max_shard_size="20KB", variant=variant)
    files = sorted((folder / "unet").glob("*.safetensors"))
    assert len(files) > 1
    check(folder)
    assert torch.equal(load_pipeline(folder).unet.conv_in.weight, unet.conv_in.weight)
    files[-1].unlink()
    with pytest.raises(
        ConfigError, match=rf"{files[-1].name}' cannot be read \(No such file.*\); copy the checkpoint again"
    ):
        check(folder)
    with pytest.raises(ConfigError, match=r"cannot load '.*model'"):
        load_pipeline(folder)


def test_weights_that_could_run_code_are_refused_with_the_way_to_others(folder):
    (folder / f"{UNET}.safetensors").rename(folder / f"{UNET}.bin")
    refused(
        folder, r"unet' holds no file named diffusion_pytorch_model.safetensors, but diffusion_pytorch_model.bin; write"
    )


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_network_that_is_not_there_is_refused(folder, part):
    shutil.rmtree(folder / part)
    refused(
        folder,
        rf"{part}' holds no file named {FAMILY['StableDiffusionPipeline'].networks[part][1]}.safetensors; restore",
    )
    edit(folder / "model_index.json", **{part: [None, None]})
    with pytest.raises(ConfigError, match=f"has no {part}; give a folder"):
        check(folder)


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_git_left_as_a_pointer_are_refused_as_that(folder, name):
    (folder / f"{name}.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 33\n")
    with pytest.raises(ConfigError, match=rf"{name}.safetensors' is a git LFS pointer.*git lfs pull"):
        check(folder)


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize(("content", "said"), [("", "empty"), ("[1]", "not an object"), ('{"a": ', "not JSON")])
def test_a_damaged_json_file_is_named(folder, name, content, said):
    (folder / name).write_text(content)
    with pytest.raises(ConfigError, match=rf"model/{name}' is damaged \({said}\); copy the checkpoint again"):
        check(folder)


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    ],
    ids=lambda config: config["_class_name"],
)
def test_a_scheduler_without_betas_is_refused(folder, config):
    common = {"num_train_timesteps": 1000, "prediction_type": "epsilon"}
    edit(folder / "model_index.json", scheduler=["diffusers", config["_class_name"]])
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(common | config))
    refused(folder, rf"scheduler.*, a {config['_class_name']}, gives no beta_start, .*such as DDIMScheduler")


def test_a_scheduler_that_clips_or_whose_betas_are_no_numbers_is_refused_by_check_already(tmp_path, folder):
    with pytest.raises(ConfigError, match="thresholding=True"):
        check(write_tiny_pipeline(tmp_path / "clips", thresholding=True))
    edit(folder / "scheduler/scheduler_config.json", beta_start="small")
    with pytest.raises(ConfigError, match=r"scheduler_config.json is damaged \(.*\); copy"):
        check(folder)


def test_networks_of_other_classes_are_refused(folder):
    from diffusers import AutoencoderTiny

    channels = (16, 16, 16)
    vae = AutoencoderTiny(
        encoder_block_out_channels=channels, decoder_block_out_channels=channels, num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1), scaling_factor=1.0,
    )  # fmt: skip
    shutil.rmtree(folder / "vae")
    vae.save_pretrained(folder / "vae")
    edit(folder / "model_index.json", vae=["diffusers", "AutoencoderTiny"])
    refused(folder, r"vae of '.*model' is of class AutoencoderTiny, wanted AutoencoderKL; give a folder")


@pytest.mark.parametrize("found", [["transformers", "CLIPTextModelWithProjection"], ["T5EncoderModel"], "CLIP", 3])
def test_a_text_encoder_of_another_class_is_refused(folder, found):
    edit(folder / "model_index.json", text_encoder=found)
    name = found[-1] if isinstance(found, list) else found
    refused(folder, rf"text_encoder of '.*model' is of class {name}, wanted CLIPTextModel; give a folder")


def test_a_single_file_is_refused_with_the_way_to_a_folder(tmp_path):
    (tmp_path / "civitai.safetensors").write_bytes(b"")
    refused(
        str(tmp_path / "civitai.safetensors"),
        r"civitai.safetensors' is a single file, wanted a diffusers folder; .*from_single_file\('.*'\).save_pretrained",
    )
