"""Open a Stable Diffusion pipeline, or say in one sentence why that is impossible."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from common.errors import ConfigError
from common.policies.folders import quiet_libraries

PIPELINES = ("StableDiffusionPipeline", "LatentConsistencyModelPipeline")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FIX = "give a folder written by diffusers' save_pretrained or a hub id such as stabilityai/stable-diffusion-2-1"


def open_pipeline(checkpoint: str | Path) -> Any:
    """The diffusers pipeline of a folder or hub id, from safetensors only, without safety checker, on the CPU.

    Raises `ConfigError` when it is missing, incomplete, damaged, cannot be reached, or no Stable Diffusion pipeline.
    """
    is_folder = _check_folder(checkpoint)
    fix = f"restore what is missing, or {_FIX}" if is_folder else f"check the id and the network, or {_FIX}"
    try:
        return _from_pretrained(checkpoint, local_files_only=is_folder)
    # What the libraries raise for damaged files depends on the file; all of it means that this checkpoint is unusable.
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError, SafetensorError) as error:
        raise ConfigError(f"cannot load {str(checkpoint)!r}: {_first_line(error)}; {fix}") from error


def check_pipeline(checkpoint: str | Path) -> None:
    """Raise `ConfigError` for a folder that `open_pipeline` would refuse, without loading it. Hub ids are let pass."""
    from safetensors import safe_open

    if not _check_folder(checkpoint):
        return
    for path in sorted(Path(checkpoint).glob("*/*.safetensors")):
        try:
            with safe_open(path, "numpy"):
                pass  # its header names every tensor and must cover the file
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{str(path)!r} is damaged ({_first_line(error)}); copy the checkpoint again") from error


def _from_pretrained(checkpoint: str | Path, *, local_files_only: bool) -> Any:
    with quiet_libraries():
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline.from_pretrained(
            str(checkpoint),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            use_safetensors=True,
            local_files_only=local_files_only,
        )


def _check_folder(checkpoint: str | Path) -> bool:
    """Whether the checkpoint is a folder, which then holds a pipeline of a known class."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        if isinstance(checkpoint, Path) or not _HUB_ID.fullmatch(checkpoint):
            raise ConfigError(f"there is no checkpoint folder {str(checkpoint)!r}; {_FIX}")
        return False
    index = folder / "model_index.json"
    if not index.is_file():
        raise ConfigError(f"{str(folder)!r} holds no model_index.json, so it is no diffusers pipeline; {_FIX}")
    try:
        kind = json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{str(index)!r} is damaged ({error!r}); copy the checkpoint again") from error
    if kind not in PIPELINES:
        raise ConfigError(f"{str(folder)!r} holds a {kind}, wanted a {' or a '.join(PIPELINES)}; {_FIX}")
    # Without these files transformers builds a tokenizer that knows no word, and says nothing.
    if not any((folder / "tokenizer" / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ConfigError(f"{str(folder / 'tokenizer')!r} holds neither tokenizer.json nor vocab.json; {_FIX}")
    return True


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".;") or type(error).__name__
