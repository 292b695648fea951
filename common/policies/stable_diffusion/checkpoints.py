"""Open a Stable Diffusion pipeline, or say in one sentence why that is impossible."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from drover.common.errors import ConfigError
from drover.common.hub import first_line, is_folder, quiet_diffusers

INDEX = "model_index.json"
_UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
PIPELINES: dict[str, dict[str, Any]] = {  # by class: what it is opened with, besides its weights
    "StableDiffusionPipeline": _UNCHECKED,
    "LatentConsistencyModelPipeline": _UNCHECKED,
    "StableDiffusionXLPipeline": {"add_watermarker": False},
}
_FIX = "give a folder written by diffusers' save_pretrained or a hub id such as stabilityai/stable-diffusion-2-1"


def open_pipeline(checkpoint: str | Path) -> Any:
    """The diffusers pipeline of a folder or hub id, of the class it names, from safetensors only, on the CPU.

    Raises `ConfigError` when it is missing, incomplete, damaged, cannot be reached, or no Stable Diffusion pipeline.
    """
    is_local = _check_folder(checkpoint)
    fix = f"restore what is missing, or {_FIX}" if is_local else f"check the id and the network, or {_FIX}"
    try:
        return _from_pretrained(checkpoint, is_local=is_local)
    except ConfigError:
        raise
    # What the libraries raise for damaged files depends on the file; all of it means that this checkpoint is unusable.
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError, SafetensorError) as error:
        raise ConfigError(f"cannot load {str(checkpoint)!r}: {first_line(error)}; {fix}") from error


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
            raise ConfigError(f"{str(path)!r} is damaged ({first_line(error)}); copy the checkpoint again") from error


def _from_pretrained(checkpoint: str | Path, *, is_local: bool) -> Any:
    with quiet_diffusers():
        import diffusers
        from huggingface_hub import hf_hub_download

        # The index alone at first: another class is refused before gigabytes of it are fetched.
        index = Path(checkpoint, INDEX) if is_local else Path(hf_hub_download(str(checkpoint), INDEX))
        kind = _read_index(index, checkpoint)["_class_name"]
        return getattr(diffusers, kind).from_pretrained(
            str(checkpoint), use_safetensors=True, local_files_only=is_local, **PIPELINES[kind]
        )


def _check_folder(checkpoint: str | Path) -> bool:
    """Whether the checkpoint is a folder, which then holds a pipeline of a known class."""
    if not is_folder(checkpoint, _FIX):
        return False
    folder = Path(checkpoint)
    if not (folder / INDEX).is_file():
        raise ConfigError(f"{str(folder)!r} holds no {INDEX}, so it is no diffusers pipeline; {_FIX}")
    for name, part in _read_index(folder / INDEX, checkpoint).items():
        if name.startswith("tokenizer") and part != [None, None]:
            _check_tokenizer(folder / name)
    return True


def _read_index(path: Path, checkpoint: str | Path) -> dict[str, Any]:
    """What the pipeline is made of, by name, and the name of its class, which is a known one."""
    try:
        index: dict[str, Any] = json.loads(path.read_text())
        kind = index["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{str(path)!r} is damaged ({error!r}); copy the checkpoint again") from error
    if kind not in PIPELINES:
        raise ConfigError(f"{str(checkpoint)!r} holds a {kind}, wanted one of {', '.join(PIPELINES)}; {_FIX}")
    return index


def _check_tokenizer(folder: Path) -> None:
    # Without these files transformers builds a tokenizer that knows no word, and says nothing.
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ConfigError(f"{str(folder)!r} holds neither tokenizer.json nor vocab.json; {_FIX}")
