"""Open a Stable Diffusion pipeline, or say in one sentence why that is impossible."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from drover.common.diffusion.noising import DiscreteSchedule
from drover.common.errors import ConfigError
from drover.common.files import is_lfs_pointer
from drover.common.hub import first_line, is_folder, quiet_diffusers
from drover.common.records import BadRecord, json_object

INDEX = "model_index.json"
XL = "StableDiffusionXLPipeline"
_UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
PIPELINES: dict[str, dict[str, Any]] = {  # by class: what it is opened with, besides its weights
    "StableDiffusionPipeline": _UNCHECKED,
    "LatentConsistencyModelPipeline": _UNCHECKED,
    XL: {"add_watermarker": False},
}
NETWORKS = {  # part of a pipeline: the class that policies know how to use, the name of its weights
    "unet": ("UNet2DConditionModel", "diffusion_pytorch_model"),
    "vae": ("AutoencoderKL", "diffusion_pytorch_model"),
    "text_encoder": ("CLIPTextModel", "model"),
    "text_encoder_2": ("CLIPTextModelWithProjection", "model"),
}
HALF = "fp16"  # the variant that is taken where a network has no weights in full precision
BETAS = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")
_FIX = "give a folder written by diffusers' save_pretrained or a hub id such as stabilityai/stable-diffusion-2-1"


def open_pipeline(checkpoint: str | Path) -> Any:
    """The diffusers pipeline of a folder or hub id, of the class it names, from safetensors only, on the CPU.

    Raises `ConfigError` when it is missing, incomplete, damaged, cannot be reached, or no Stable Diffusion pipeline.
    """
    is_local = _check_folder(checkpoint)
    fix = f"restore what is missing, or {_FIX}" if is_local else f"check the id and the network, or {_FIX}"
    try:
        pipeline = _from_pretrained(checkpoint, is_local=is_local)
    except ConfigError:
        raise
    # What the libraries raise for damaged files depends on the file; all of it means that this checkpoint is unusable.
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError, SafetensorError) as error:
        raise ConfigError(f"cannot load {str(checkpoint)!r}: {first_line(error)}; {fix}") from error
    _check_scheduler(f"the scheduler of {str(checkpoint)!r}", pipeline.scheduler.config)
    return pipeline


def check_pipeline(checkpoint: str | Path) -> None:
    """Raise `ConfigError` for a folder that `open_pipeline` would refuse: its files are opened, their tensors not loaded.

    Hub ids are let pass.
    """
    if not _check_folder(checkpoint):
        return
    folder = Path(checkpoint)
    index = _read_index(folder / INDEX, checkpoint)
    parts = _networks(index)
    needed = [part for part in NETWORKS if part != "text_encoder_2" or index["_class_name"] == XL]
    if missing := [part for part in needed if part not in parts]:
        raise ConfigError(f"{str(checkpoint)!r} has no {', '.join(missing)}; {_FIX}")
    variant = _variant(folder, parts)
    for part in parts:
        _read_json(folder / part / "config.json")
        for path in _weights(folder / part, part, variant) or _weights(folder / part, part, None):
            _check_header(path)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    _check_scheduler(str(scheduler), _read_json(scheduler))


def _from_pretrained(checkpoint: str | Path, *, is_local: bool) -> Any:
    with quiet_diffusers():
        import diffusers
        from huggingface_hub import hf_hub_download

        # The index alone at first: another class is refused before gigabytes of it are fetched.
        path = Path(checkpoint, INDEX) if is_local else Path(hf_hub_download(str(checkpoint), INDEX))
        index = _read_index(path, checkpoint)
        kind = index["_class_name"]
        return getattr(diffusers, kind).from_pretrained(
            str(checkpoint),
            use_safetensors=True,
            local_files_only=is_local,
            variant=_variant(Path(checkpoint), _networks(index)) if is_local else None,
            **PIPELINES[kind],
        )


def _check_folder(checkpoint: str | Path) -> bool:
    """Whether the checkpoint is a folder, which then holds a pipeline of a known class."""
    if Path(checkpoint).is_file():
        raise ConfigError(
            f"{str(checkpoint)!r} is a single file, wanted a diffusers folder; write one with diffusers' "
            f"StableDiffusionPipeline.from_single_file({str(checkpoint)!r}).save_pretrained(FOLDER)"
        )
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
    """The parts of the pipeline, by name, and the name of its class: each of a class that is known here."""
    index = _read_json(path)
    kind = index.get("_class_name")
    if kind not in PIPELINES:
        raise ConfigError(f"{str(checkpoint)!r} holds a {kind}, wanted one of {', '.join(PIPELINES)}; {_FIX}")
    for part in _networks(index):
        found = index[part][-1] if isinstance(index[part], list) else index[part]
        if found != NETWORKS[part][0]:
            raise ConfigError(f"{part} of {str(checkpoint)!r} is of class {found}, wanted {NETWORKS[part][0]}; {_FIX}")
    return index


def _networks(index: Mapping[str, Any]) -> list[str]:
    """The parts that have weights and are loaded."""
    return [part for part in NETWORKS if index.get(part) not in (None, [], [None, None])]


def _variant(folder: Path, parts: list[str]) -> str | None:
    """`HALF` where a network comes in half precision only, else None. Raises `ConfigError` for one without weights."""
    variant = None
    for part in parts:
        if _weights(folder / part, part, None):
            continue
        if not _weights(folder / part, part, HALF):
            raise ConfigError(_no_weights(folder / part, f"{NETWORKS[part][1]}.safetensors"))
        variant = HALF
    return variant


def _weights(folder: Path, part: str, variant: str | None) -> list[Path]:
    """The safetensors files of a network: one, or those that its index names; none where there is neither."""
    name, infix = NETWORKS[part][1], f".{variant}" if variant else ""
    whole, index = folder / f"{name}{infix}.safetensors", folder / f"{name}.safetensors.index{infix}.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        return []
    files = _read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise ConfigError(f"{str(index)!r} names no file of weights; copy the checkpoint again")
    return sorted({folder / str(file) for file in files.values()})


def _no_weights(folder: Path, wanted: str) -> str:
    others = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".safetensors", ".msgpack"))
    if not others:
        return f"{str(folder)!r} holds no file named {wanted}; restore what is missing, or {_FIX}"
    return (
        f"{str(folder)!r} holds no file named {wanted}, but {', '.join(others[:3])}; write the pipeline again with "
        "diffusers' save_pretrained(FOLDER, safe_serialization=True): pickles, which can run code, are not opened"
    )


def _check_header(path: Path) -> None:
    """The header names every tensor, and must cover the file."""
    from safetensors import safe_open

    try:
        with path.open("rb") as file:
            if is_lfs_pointer(file.read(64)):
                raise ConfigError(
                    f"{str(path)!r} is a git LFS pointer, not the file itself; fetch it with git lfs pull"
                )
        with safe_open(path, "numpy"):
            pass
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read ({error.strerror}); copy the checkpoint again") from error
    except SafetensorError as error:
        raise ConfigError(f"{str(path)!r} is damaged ({first_line(error)}); copy the checkpoint again") from error


def _check_scheduler(name: str, config: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a scheduler whose noising path cannot be followed."""
    missing = [key for key in BETAS if key not in config]
    if missing and config.get("trained_betas") is None:
        raise ConfigError(
            f"{name}, a {config.get('_class_name')}, gives no {', '.join(missing)}; give a checkpoint with a scheduler of "
            "betas, such as DDIMScheduler"
        )
    try:
        DiscreteSchedule.from_diffusers(config)
    except ConfigError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{name} is damaged ({first_line(error)}); copy the checkpoint again") from error


def _check_tokenizer(folder: Path) -> None:
    # Without these files transformers builds a tokenizer that knows no word, and says nothing.
    words = [folder / name for name in ("tokenizer.json", "vocab.json") if (folder / name).is_file()]
    if not words:
        raise ConfigError(f"{str(folder)!r} holds neither tokenizer.json nor vocab.json; {_FIX}")
    for path in words:
        _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json_object(path.read_bytes())
    except BadRecord as bad:
        raise ConfigError(f"{str(path)!r} is damaged ({bad.reason}); copy the checkpoint again") from None
    except OSError as error:
        raise ConfigError(
            f"{str(path)!r} cannot be read ({error.strerror}); restore what is missing, or {_FIX}"
        ) from error
