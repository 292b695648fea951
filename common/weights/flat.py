"""Pack named tensors into one flat buffer with a manifest, which every carrier moves, and load it into a module.

All checks happen before the first parameter is written, so a bad load changes no parameter.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from drover.common.errors import WeightSyncFailed
from drover.common.protocols import Canary

ALIGNMENT = 64  # bytes; lets a reader view any tensor in place


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor inside the buffer."""

    name: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    checksum: int  # xxh3_64 of its bytes


@dataclass(frozen=True, slots=True)
class Manifest:
    version: int
    dtype: torch.dtype
    entries: tuple[Entry, ...]
    canary: Canary | None

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries)


def pack(
    version: int,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    canary: Canary | None,
    *,
    reuse: np.ndarray | None = None,
) -> tuple[Manifest, np.ndarray]:
    """(manifest, uint8 buffer) of the tensors cast to ``dtype``. One copy: device or module memory to the buffer.

    ``reuse`` is the buffer of a former call, which must have no reader left. It is overwritten if it has the right size,
    because writing to memory for the first time takes longer than the copy.
    """
    width = torch.empty((), dtype=dtype).element_size()
    offsets, end = [], 0
    for tensor in tensors.values():
        offsets.append(end)
        end += -(-tensor.numel() * width // ALIGNMENT) * ALIGNMENT
    fits = reuse is not None and reuse.size == end
    buffer = torch.from_numpy(reuse) if fits else torch.empty(end, dtype=torch.uint8)
    entries = []
    for (name, tensor), offset in zip(tensors.items(), offsets, strict=True):
        span = buffer[offset : offset + tensor.numel() * width]
        span.view(dtype).copy_(tensor.detach().reshape(-1))
        entries.append(Entry(name, tuple(tensor.shape), offset, span.numel(), _checksum(span.numpy())))
    return Manifest(version, dtype, tuple(entries), canary), buffer.numpy()


@torch.no_grad()
def load(manifest: Manifest, buffer: np.ndarray, into: nn.Module) -> None:
    """Copy the buffer into the module's trainable parameters of the same names. Raises `WeightSyncFailed`."""
    wanted = {name: p for name, p in into.named_parameters() if p.requires_grad}
    _check_names({entry.name for entry in manifest.entries}, set(wanted), manifest.version)
    for entry in manifest.entries:
        if entry.shape != tuple(wanted[entry.name].shape):
            raise WeightSyncFailed(
                f"version {manifest.version}: {entry.name} arrived with shape {entry.shape}, "
                f"the module has {tuple(wanted[entry.name].shape)}; actor and learner must build the same policy"
            )
        span = buffer[entry.offset : entry.offset + entry.nbytes]
        if span.size != entry.nbytes or _checksum(span) != entry.checksum:
            raise WeightSyncFailed(f"version {manifest.version}: {entry.name} arrived damaged; publish it again")
    for entry in manifest.entries:
        span = buffer[entry.offset : entry.offset + entry.nbytes]
        wanted[entry.name].copy_(_tensor(span).view(manifest.dtype).view(entry.shape))


def _check_names(came: set[str], wanted: set[str], version: int) -> None:
    if came == wanted and came:
        return
    raise WeightSyncFailed(
        f"version {version} holds {len(came)} tensors for a module with {len(wanted)} trainable ones; "
        f"missing {sorted(wanted - came)[:3]}, unknown {sorted(came - wanted)[:3]}: "
        "actor and learner must build the same policy"
    )


def _checksum(span: np.ndarray) -> int:
    return xxhash.xxh3_64_intdigest(span.data)


def _tensor(span: np.ndarray) -> Tensor:
    """View the bytes as a tensor, only to be read. By address, as torch warns about read-only numpy memory."""
    if not span.size:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer((ctypes.c_uint8 * span.size).from_address(span.ctypes.data), dtype=torch.uint8)
