"""Converts a Stable Diffusion folder of transformers 5, so that transformers 4 reads it with the same weights.

Version 5 dropped the ``text_model.`` prefix of CLIP's tensors and keeps the tokenizer in one file. Version 4 then
starts from a random text encoder and only warns; `check_same` makes that an error.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

PREFIX = "text_model."
ENCODER_WEIGHTS = Path("text_encoder/model.safetensors")
UNET_WEIGHTS = Path("unet/diffusion_pytorch_model.safetensors")


def convert(pipeline: Path, folder: Path) -> None:
    """Write a copy of the pipeline folder that transformers 4 reads. ``folder`` must not exist."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(pipeline, folder)
    tensors = load_file(pipeline / ENCODER_WEIGHTS)
    renamed = {PREFIX + name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / ENCODER_WEIGHTS, metadata={"format": "pt"})

    model = json.loads((pipeline / "tokenizer/tokenizer.json").read_text())["model"]
    (folder / "tokenizer/vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "tokenizer/merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))


def check_same(loaded: StableDiffusionPipeline, pipeline: Path, prompts: Sequence[str]) -> None:
    """Raise ValueError unless the loaded text encoder, UNet and token ids equal those of the original folder bit for bit."""
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    for module, weights in ((loaded.text_encoder, ENCODER_WEIGHTS), (loaded.unet, UNET_WEIGHTS)):
        wanted = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(pipeline / weights).items()}
        came = {name.removeprefix(PREFIX): tensor for name, tensor in module.state_dict().items()}
        differing = [name for name, tensor in wanted.items() if name not in came or not came[name].equal(tensor)]
        if differing or not wanted:
            raise ValueError(
                f"{len(differing)} of {len(wanted)} tensors differ from {pipeline / weights}: {differing[:3]}"
            )

    original = Tokenizer.from_file(str(pipeline / "tokenizer/tokenizer.json"))
    original.no_padding()
    for prompt in ("", *prompts):
        ids = loaded.tokenizer(prompt).input_ids
        if ids != original.encode(prompt).ids:
            raise ValueError(f"{prompt!r} becomes tokens {ids} instead of {original.encode(prompt).ids}")
