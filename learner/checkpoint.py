"""Sharded, atomic checkpoints without pickle: one safetensors file per rank and one JSON file that makes them valid.

    checkpoints/update-000040/rank-0.safetensors ... state.json

All files are written into ``*.partial``, which is renamed when the last rank is done: a folder without that suffix is whole. A
checkpoint written by one number of ranks can be read by another: shards are pieces along the first axis, in rank order.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor, nn

from common.errors import CheckpointError
from learner import fsdp
from learner.step import AVERAGE

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's state of a parameter, besides its step count


class Checkpoints:
    """The checkpoint folder of one run. ``keep`` newest stay. Every method is called by all ranks together."""

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self._folder, self._keep = folder, keep

    def save(self, update: int, module: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> Path:
        """Write everything this rank holds, and ``state`` (JSON) once. Raises `CheckpointError`; the old ones stay."""
        target = self._folder / f"update-{update:06d}"
        partial = target.with_suffix(".partial")
        rank = dist.get_rank()
        with _explained(f"checkpoint {target} cannot be written"):
            if rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
        dist.barrier()
        with _explained(f"checkpoint {target} cannot be written"):
            _write_shard(partial / f"rank-{rank}.safetensors", _shard_tensors(module, optimizer))
        dist.barrier()
        if rank == 0:
            with _explained(f"checkpoint {target} cannot be written"):
                _write_state(partial, state)
                shutil.rmtree(target, ignore_errors=True)
                partial.rename(target)
                for old in self._whole()[: -self._keep]:
                    shutil.rmtree(old)
        dist.barrier()
        return target

    def newest(self) -> Path | None:
        """The newest whole and undamaged checkpoint. Each rank looks for itself, at the same files."""
        for folder in reversed(self._whole()):
            if _undamaged(folder):
                return folder
        return None

    def load(self, folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Fill this rank's shards; returns the state. Raises `CheckpointError` when it was made by another model."""
        from safetensors import safe_open

        state: dict[str, Any] = json.loads((folder / "state.json").read_text())
        files = [safe_open(folder / f"rank-{i}.safetensors", "pt") for i in range(state["ranks"])]
        parameters = fsdp.trainable(module)
        saved = {key.removeprefix("weight/") for key in files[0].keys() if key.startswith("weight/")}  # noqa: SIM118
        if saved != parameters.keys():
            raise CheckpointError(
                f"{folder} holds {len(saved)} tensors for a model with {len(parameters)}; missing "
                f"{sorted(parameters.keys() - saved)[:3]}, unknown {sorted(saved - parameters.keys())[:3]}: "
                "resume with the recipe and parameters that wrote it"
            )
        for name, parameter in parameters.items():
            _fill(parameter, _whole_tensor(files, f"weight/{name}"))
            keys = [key for key in (*MOMENTS, AVERAGE) if f"{key}/{name}" in files[0].keys()]  # noqa: SIM118
            moments = {key: fsdp.like(parameter, _whole_tensor(files, f"{key}/{name}")) for key in keys}
            optimizer.state[parameter] = {"step": files[0].get_tensor(f"step/{name}"), **moments}
        return state

    def _whole(self) -> list[Path]:
        return sorted(
            p for p in self._folder.glob("update-*") if p.suffix != ".partial" and (p / "state.json").exists()
        )


def _shard_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, parameter in fsdp.trainable(module).items():
        state = optimizer.state.get(parameter, {})
        tensors[f"weight/{name}"] = fsdp.local(parameter)
        for key in MOMENTS:
            tensors[f"{key}/{name}"] = fsdp.local(state[key]) if state else torch.zeros_like(fsdp.local(parameter))
        if AVERAGE in state:
            tensors[f"{AVERAGE}/{name}"] = fsdp.local(state[AVERAGE])
        tensors[f"step/{name}"] = state["step"] if state else torch.zeros(())
    return {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}


def _write_shard(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_state(folder: Path, state: Mapping[str, Any]) -> None:
    shards = sorted(folder.glob("rank-*.safetensors"))
    sums = {shard.name: _file_sum(shard) for shard in shards}
    with (folder / "state.json").open("w") as file:
        json.dump({**state, "ranks": len(shards), "checksums": sums}, file)
        file.flush()
        os.fsync(file.fileno())


def _undamaged(folder: Path) -> bool:
    try:
        state = json.loads((folder / "state.json").read_text())
        return all(_file_sum(folder / name) == value for name, value in state["checksums"].items())
    except (OSError, ValueError, KeyError):
        return False


def _file_sum(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest()


def _whole_tensor(files: list[Any], key: str) -> Tensor:
    pieces = [file.get_tensor(key) for file in files]
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


@torch.no_grad()
def _fill(parameter: Tensor, whole: Tensor) -> None:
    if tuple(whole.shape) != tuple(parameter.shape):
        raise CheckpointError(
            f"a tensor of shape {tuple(whole.shape)} was saved where the model has {tuple(parameter.shape)}"
        )
    fsdp.local(parameter).copy_(fsdp.local(fsdp.like(parameter, whole)))


class _explained:
    """Turns an error of the disk into a `CheckpointError` that says what to do."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from safetensors import SafetensorError  # how its writer reports a full disk

        if isinstance(error, OSError | SafetensorError):
            reason = error.strerror if isinstance(error, OSError) else error
            raise CheckpointError(
                f"{self._what}: {reason}; free space or fix permissions, then resume from the one before"
            ) from error
