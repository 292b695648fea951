"""Save and load sharded checkpoints, whole or not at all: a safetensors file per rank, and a JSON file that makes them valid.

    checkpoints/update-000040/rank-0.safetensors ... state.json

Saving copies to the host and returns; a thread of each rank writes (`checkpoint_files.py`), without a collective, which
would mix with those of training. No pickle is used. A checkpoint of one number of ranks can be read by another: shards are
pieces along the first axis, in rank order.

All state of a resumed run is either saved or follows from saved state:

- in the shards: weights, AdamW's moments and step count, the moving average of weights, a reference that moved;
- in ``state.json``: counts of updates, versions, samples, optimiser steps, iterations without any reward; the ledger; the next
  place and group, open groups, vacant places; the watch's verdict; evaluations that were under way; and the run's identity:
  every parameter that changes the learned weights, the rewards among them, with the content of the files that they name;
- task, prompt and recorded steps follow from a group's place, free slots from the open groups, the learning rate from the step;
- no generator has a state: noise follows from run seed, group and sample, pretraining pictures with their times and noise from
  the round or the step, held-out noise from the order of the prompts;
- no objective keeps a baseline from one iteration to the next: advantages are taken within an iteration;
- samples of open groups are not kept. They are sampled again, and come out the same where a run is on-policy.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from drover.common.errors import CheckpointError
from drover.common.files import explained
from drover.learner import fsdp, ranks
from drover.learner.reference import REFERENCE
from drover.learner.saving.checkpoint_files import Writer, damage, number_of, read_state, set_aside, whole
from drover.learner.saving.shards import HostBuffer
from drover.learner.step import AVERAGE

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's state of a parameter, besides its step count
OTHER_WEIGHTS = (AVERAGE, REFERENCE)  # kept in the optimiser's state where a run has them
LEAVE_S = 30.0  # the longest wait of a failing rank for the checkpoint that it is writing


@dataclass(frozen=True, slots=True)
class Chosen:
    """The checkpoint to resume from, if there is one, and the remarks on this choice for people."""

    folder: Path | None
    told: tuple[str, ...] = ()


class Checkpoints:
    """Saves to and loads from one run's checkpoint folder; the ``keep`` newest checkpoints stay.

    All ranks must call a method together, except `check` and `close`.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self._folder, self._keep = folder, keep
        self._buffer = HostBuffer()
        self._writer: Writer | None = None
        self._life = 0  # distinguishes our partial folders from those of a former learner process that still writes

    def save(self, update: int, module: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> Path:
        """Copy this rank's tensors and start writing them, with ``state`` (JSON). Returns the checkpoint's folder.

        Waits for the checkpoint before this one, and raises its `CheckpointError`; older checkpoints stay.
        """
        self.finish()
        copied = self._buffer.copy(_shard_tensors(module, optimizer))
        snapshot = json.loads(json.dumps(state))  # a copy, because the state goes on changing while the thread writes
        self._life = self._life or int(ranks.all_sum([time.time_ns() // 1_000_000 if dist.get_rank() == 0 else 0])[0])
        target = self._folder / f"update-{update:06d}"
        self._writer = Writer(copied, target, life=self._life, state=snapshot, keep=self._keep)
        self._writer.start()
        return target

    def check(self) -> None:
        """Raise the `CheckpointError` of the checkpoint that is being written, if it has failed already."""
        if self._writer is not None and self._writer.error is not None:
            raise self._writer.error

    def finish(self) -> None:
        """Wait until the checkpoint that is being written is whole, if there is one. Raises its `CheckpointError`."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        writer.join()
        failures = ranks.all_sum([float(writer.error is not None)])[0]
        if writer.error is not None:
            raise writer.error
        if failures:
            raise CheckpointError(f"{writer.target} is not whole: another rank could not write its part, and says why")

    def close(self) -> None:
        """Wait up to `LEAVE_S` for the checkpoint that is being written, when this rank ends for another reason."""
        if self._writer is not None:
            self._writer.join(LEAVE_S)

    def choose(self) -> Chosen:
        """Find the newest undamaged checkpoint: rank 0 looks for all ranks. Must be called before the first `save`.

        Newer checkpoints that are damaged are set aside as ``.damaged`` until the next checkpoint is whole, and reported.
        Raises `CheckpointError` when there are checkpoints and all are damaged.
        """
        found, number = Chosen(None), 0.0
        error: CheckpointError | None = None
        if dist.get_rank() == 0:
            try:
                found = self._look()
                number = -1.0 if found.folder is None else float(number_of(found.folder))
            except CheckpointError as none_left:
                error, number = none_left, -2.0
        number = ranks.all_sum([number])[0]
        if error is not None:
            raise error
        if number == -2:
            raise CheckpointError(f"rank 0 can read no checkpoint in {self._folder}, and says why")
        return Chosen(self._folder / f"update-{int(number):06d}" if number >= 0 else None, found.told)

    def load(self, folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Fill this rank's shards and return the state. Raises `CheckpointError` for a checkpoint of another model."""
        from safetensors import safe_open

        state = read_state(folder)
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
            keys = [key for key in (*MOMENTS, *OTHER_WEIGHTS) if f"{key}/{name}" in files[0].keys()]  # noqa: SIM118
            moments = {key: fsdp.like(parameter, _whole_tensor(files, f"{key}/{name}")) for key in keys}
            steps = files[0].get_tensor(f"step/{name}").to(parameter.device)
            optimizer.state[parameter] = {"step": steps, **moments}
        return state

    def _look(self) -> Chosen:
        damaged: list[tuple[Path, str]] = []
        with explained(f"{self._folder} cannot be tidied"):
            for partial in self._folder.glob("update-*.partial"):
                shutil.rmtree(partial)
            for folder in reversed(whole(self._folder)):
                trouble = damage(folder)
                if not trouble:
                    return Chosen(folder, tuple(set_aside(old, why, instead=folder) for old, why in damaged))
                damaged.append((folder, trouble))
        if damaged:
            listed = "; ".join(f"{folder.name}: {trouble}" for folder, trouble in damaged)
            raise CheckpointError(
                f"every checkpoint in {self._folder} is damaged ({listed}); restore one from a backup, "
                "or begin anew under another --run-name"
            )
        return Chosen(None)


def _shard_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, parameter in fsdp.trainable(module).items():
        state = optimizer.state.get(parameter, {})
        tensors[f"weight/{name}"] = fsdp.local(parameter)
        for key in MOMENTS:
            tensors[f"{key}/{name}"] = fsdp.local(state[key]) if state else torch.zeros_like(fsdp.local(parameter))
        tensors |= {f"{key}/{name}": fsdp.local(state[key]) for key in OTHER_WEIGHTS if key in state}
        tensors[f"step/{name}"] = state["step"] if state else torch.zeros(())
    return {key: tensor.detach() for key, tensor in tensors.items()}


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
