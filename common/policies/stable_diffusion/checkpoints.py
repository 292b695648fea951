"""Open a diffusers pipeline; an error says in one sentence why it cannot be opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from drover.common.diffusion.noising import DiscreteSchedule
from drover.common.errors import ConfigError
from drover.common.files import is_lfs_pointer
from drover.common.hub import first_line, is_folder, quiet_diffusers
from drover.common.records import BadRecord, json_object

INDEX = "model_index.json"
HALF = "fp16"  # the variant used where a network has no weights in full precision
BETAS = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")
# The names that the two libraries give to files of weights.
DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"
_FIX = "give a folder written by diffusers' save_pretrained or a hub id such as stabilityai/stable-diffusion-2-1"


@dataclass(frozen=True, slots=True)
class PipelineClass:
    """A pipeline class of diffusers that a family of policies opens."""

    networks: Mapping[str, tuple[str, str]]  # part -> (class that the policy can use, name of its weights)
    options: Mapping[str, Any] = field(default_factory=dict)  # further arguments of from_pretrained


Family = Mapping[str, PipelineClass]
"""The pipeline classes that a family of policies opens, by name."""


def open_pipeline(checkpoint: str | Path, family: Family) -> Any:
    """The diffusers pipeline of a folder or hub id, of the class in its index, from safetensors only, on the CPU.

    Raises `ConfigError` when it is missing, incomplete, damaged, unreachable, or not of the family.
    """
    is_local = _check_folder(checkpoint, family)
    fix = f"restore what is missing, or {_FIX}" if is_local else f"check the id and the network, or {_FIX}"
    try:
        return _from_pretrained(checkpoint, family, is_local=is_local)
    except ConfigError:
        raise
    # The libraries' errors for damaged files depend on the file; each of them means that this checkpoint is unusable.
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError, SafetensorError) as error:
        raise ConfigError(f"cannot load {str(checkpoint)!r}: {first_line(error)}; {fix}") from error


def check_pipeline(checkpoint: str | Path, family: Family) -> Path | None:
    """Check a checkpoint folder and return it; return None for a hub id, which is not checked.

    Raises `ConfigError` for a folder that `open_pipeline` would refuse. Files are opened, but no tensors are loaded.
    """
    if not _check_folder(checkpoint, family):
        return None
    folder = Path(checkpoint)
    index = _read_index(folder / INDEX, checkpoint, family)
    networks = _networks(index, family)
    needed = family[index["_class_name"]].networks
    if missing := [part for part in needed if part not in networks]:
        raise ConfigError(f"{str(checkpoint)!r} has no {', '.join(missing)}; {_FIX}")
    variant = _variant(folder, networks)
    for part, name in networks.items():
        read_json(folder / part / "config.json")
        for path in _weights(folder / part, name, variant) or _weights(folder / part, name, None):
            _check_header(path)
    return folder


def _from_pretrained(checkpoint: str | Path, family: Family, *, is_local: bool) -> Any:
    with quiet_diffusers():
        import diffusers
        from huggingface_hub import hf_hub_download

        # The index is fetched first, so that a pipeline of another class is refused before gigabytes are fetched.
        path = Path(checkpoint, INDEX) if is_local else Path(hf_hub_download(str(checkpoint), INDEX))
        index = _read_index(path, checkpoint, family)
        kind = index["_class_name"]
        return getattr(diffusers, kind).from_pretrained(
            str(checkpoint),
            use_safetensors=True,
            local_files_only=is_local,
            variant=_variant(Path(checkpoint), _networks(index, family)) if is_local else None,
            **family[kind].options,
        )


def _check_folder(checkpoint: str | Path, family: Family) -> bool:
    """Whether the checkpoint is a folder. Raises `ConfigError` for a folder without a pipeline of the family."""
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
    for name, part in _read_index(folder / INDEX, checkpoint, family).items():
        if name.startswith("tokenizer") and part != [None, None]:
            _check_tokenizer(folder / name)
    return True


def _read_index(path: Path, checkpoint: str | Path, family: Family) -> dict[str, Any]:
    """The pipeline's index: its class, and its parts by name, each of a class that the family knows."""
    index = read_json(path)
    kind = str(index.get("_class_name"))
    if kind not in family:
        raise ConfigError(f"{str(checkpoint)!r} holds a {kind}, wanted one of {', '.join(family)}; {_FIX}")
    for part in _networks(index, family):
        found, wanted = (
            index[part][-1] if isinstance(index[part], list) else index[part],
            family[kind].networks[part][0],
        )
        if found != wanted:
            raise ConfigError(f"{part} of {str(checkpoint)!r} is of class {found}, wanted {wanted}; {_FIX}")
    return index


def _networks(index: Mapping[str, Any], family: Family) -> dict[str, str]:
    """The loaded parts that have weights -> the names of their weights."""
    known = family[index["_class_name"]].networks
    return {part: name for part, (_, name) in known.items() if index.get(part) not in (None, [], [None, None])}


def _variant(folder: Path, networks: Mapping[str, str]) -> str | None:
    """`HALF` where a network has only half precision, else None. Raises `ConfigError` for a network without weights."""
    variant = None
    for part, name in networks.items():
        if _weights(folder / part, name, None):
            continue
        if not _weights(folder / part, name, HALF):
            raise ConfigError(_no_weights(folder / part, f"{name}.safetensors"))
        variant = HALF
    return variant


def _weights(folder: Path, name: str, variant: str | None) -> list[Path]:
    """The safetensors files of a network: a single file, or the files that its index names; [] where there is neither."""
    infix = f".{variant}" if variant else ""
    whole, index = folder / f"{name}{infix}.safetensors", folder / f"{name}.safetensors.index{infix}.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        return []
    files = read_json(index).get("weight_map")
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
    """Check that the header of a safetensors file can be read, and that its tensors cover the file."""
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


def check_scheduler(name: str, config: Mapping[str, Any]) -> None:
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
    # Without these files transformers builds a tokenizer that knows no word, without an error.
    words = [folder / name for name in ("tokenizer.json", "vocab.json") if (folder / name).is_file()]
    if not words:
        raise ConfigError(f"{str(folder)!r} holds neither tokenizer.json nor vocab.json; {_FIX}")
    for path in words:
        read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a config file of a pipeline folder. Raises `ConfigError` where it cannot be read."""
    try:
        return json_object(path.read_bytes())
    except BadRecord as bad:
        raise ConfigError(f"{str(path)!r} is damaged ({bad.reason}); copy the checkpoint again") from None
    except OSError as error:
        raise ConfigError(
            f"{str(path)!r} cannot be read ({error.strerror}); restore what is missing, or {_FIX}"
        ) from error
