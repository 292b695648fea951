"""Open a diffusers pipeline, or say in one sentence why that is impossible."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from drover.common.errors import ConfigError
from drover.common.policies.folders import quiet_libraries

INDEX = "model_index.json"
Classes = Mapping[str, Mapping[str, Any]]
"""The pipeline classes that a family opens, by name, with the arguments they are opened with besides the weights."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FIX = "give a folder written by diffusers' save_pretrained or a hub id such as stabilityai/stable-diffusion-2-1"


def open_pipeline(checkpoint: str | Path, classes: Classes) -> Any:
    """The diffusers pipeline of a folder or hub id, of the class it names, from safetensors only, on the CPU.

    Raises `ConfigError` when it is missing, incomplete, damaged, cannot be reached, or of none of the ``classes``.
    """
    is_folder = _check_folder(checkpoint, classes)
    fix = f"restore what is missing, or {_FIX}" if is_folder else f"check the id and the network, or {_FIX}"
    try:
        return _from_pretrained(checkpoint, classes, is_folder=is_folder)
    except ConfigError:
        raise
    # What the libraries raise for damaged files depends on the file; all of it means that this checkpoint is unusable.
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError, SafetensorError) as error:
        raise ConfigError(f"cannot load {str(checkpoint)!r}: {first_line(error)}; {fix}") from error


def check_pipeline(checkpoint: str | Path, classes: Classes) -> Path | None:
    """The checkpoint where it is a folder; None for a hub id, which is let pass.

    Raises `ConfigError` for a folder that `open_pipeline` would refuse, without loading it.
    """
    from safetensors import safe_open

    if not _check_folder(checkpoint, classes):
        return None
    for path in sorted(Path(checkpoint).glob("*/*.safetensors")):
        try:
            with safe_open(path, "numpy"):
                pass  # its header names every tensor and must cover the file
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{str(path)!r} is damaged ({first_line(error)}); copy the checkpoint again") from error
    return Path(checkpoint)


def read_config(folder: Path, part: str) -> dict[str, Any]:
    """The config of a part of a pipeline folder, such as "unet". Raises `ConfigError` where it cannot be read."""
    path = next(iter((folder / part).glob("*config.json")), folder / part / "config.json")
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read ({first_line(error)}); copy the checkpoint again") from error


def _from_pretrained(checkpoint: str | Path, classes: Classes, *, is_folder: bool) -> Any:
    with quiet_libraries():
        import diffusers
        from huggingface_hub import hf_hub_download

        # The index alone at first: another class is refused before gigabytes of it are fetched.
        index = Path(checkpoint, INDEX) if is_folder else Path(hf_hub_download(str(checkpoint), INDEX))
        kind = _read_index(index, checkpoint, classes)["_class_name"]
        return getattr(diffusers, kind).from_pretrained(
            str(checkpoint), use_safetensors=True, local_files_only=is_folder, **classes[kind]
        )


def _check_folder(checkpoint: str | Path, classes: Classes) -> bool:
    """Whether the checkpoint is a folder, which then holds a pipeline of a known class."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        if isinstance(checkpoint, Path) or not _HUB_ID.fullmatch(checkpoint):
            raise ConfigError(f"there is no checkpoint folder {str(checkpoint)!r}; {_FIX}")
        return False
    if not (folder / INDEX).is_file():
        raise ConfigError(f"{str(folder)!r} holds no {INDEX}, so it is no diffusers pipeline; {_FIX}")
    for name, part in _read_index(folder / INDEX, checkpoint, classes).items():
        if name.startswith("tokenizer") and part != [None, None]:
            _check_tokenizer(folder / name)
    return True


def _read_index(path: Path, checkpoint: str | Path, classes: Classes) -> dict[str, Any]:
    """The parts of the pipeline by name, and the name of its class, which is one of ``classes``."""
    try:
        index: dict[str, Any] = json.loads(path.read_text())
        kind = index["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{str(path)!r} is damaged ({error!r}); copy the checkpoint again") from error
    if kind not in classes:
        raise ConfigError(f"{str(checkpoint)!r} holds a {kind}, wanted one of {', '.join(classes)}; {_FIX}")
    return index


def _check_tokenizer(folder: Path) -> None:
    # Without these files transformers builds a tokenizer that knows no word, and says nothing.
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ConfigError(f"{str(folder)!r} holds neither tokenizer.json nor vocab.json; {_FIX}")


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".;") or type(error).__name__
