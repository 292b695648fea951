"""Write one rank's tensors as a safetensors file: copy them into host memory at once, write them later from any thread.

The buffer has the layout of the file's data and is used again for every copy, so that training waits only for the copy.
The format is safetensors' own (8 bytes of header length, a JSON header, the tensors end to end), which its library reads;
its writer would hold the interpreter while it assembles a second copy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from drover.common.files import write_all

CHUNK = 1 << 24  # bytes that are hashed and written in one go
NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}


@dataclass(frozen=True, slots=True)
class HostCopy:
    """A copy of tensors in host memory. It is complete once ``ready`` is, as a GPU copies in the background."""

    header: bytes
    data: Tensor  # [bytes] uint8, in host memory
    ready: Any  # torch.cuda.Event, or None where the copy is done already

    def write(self, path: Path) -> str:
        """Write the file and bring it to the disk. Returns the checksum of the bytes in memory. Raises `OSError`."""
        if self.ready is not None:
            self.ready.synchronize()
        digest = xxhash.xxh3_64()
        with path.open("wb", buffering=0) as file:
            for part in (memoryview(self.header), self.data.numpy().data):
                for start in range(0, len(part), CHUNK):
                    chunk = part[start : start + CHUNK]
                    digest.update(chunk)
                    write_all(file.fileno(), chunk)
            os.fsync(file.fileno())
        return digest.hexdigest()


class HostBuffer:
    """Memory on the host for one copy of a rank's tensors; pinned where they come from a GPU."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    @torch.no_grad()
    def copy(self, tensors: Mapping[str, Tensor]) -> HostCopy:
        """Copy the tensors over the copy before. Later changes of the tensors do not change the copy."""
        cuda = any(tensor.is_cuda for tensor in tensors.values())
        # The widest values first, so that each tensor begins at a multiple of its own width.
        ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
        size = sum(tensor.nbytes for _, tensor in ordered)
        if self._buffer is None or self._buffer.numel() != size:
            self._buffer = torch.empty(size, dtype=torch.uint8, pin_memory=cuda)
        entries, end = {}, 0
        for name, tensor in ordered:
            start, end = end, end + tensor.nbytes
            if tensor.numel():
                self._buffer[start:end].view(tensor.dtype).view(tensor.shape).copy_(tensor, non_blocking=cuda)
            shape = list(tensor.shape)
            entries[name] = {"dtype": NAMES[tensor.dtype], "shape": shape, "data_offsets": [start, end]}
        ready = None
        if cuda:
            ready = torch.cuda.Event()
            ready.record()
        return HostCopy(_header(entries), self._buffer, ready)


def file_sum(path: Path) -> str:
    """The checksum of the file's present content."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _header(entries: Mapping[str, Any]) -> bytes:
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    return len(text).to_bytes(8, "little") + text
