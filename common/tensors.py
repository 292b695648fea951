"""Pack tensors into the bytes of a blob, and read them back by `TensorRef`. Knows no Redis and no message."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from drover.common.errors import CodecError
from drover.common.protocols import BlobStore
from drover.common.types import DTYPE_BYTES, TensorRef

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def dtype_named(name: str) -> torch.dtype:
    """The torch dtype named in a `TensorRef`, such as "bfloat16"."""
    import torch

    assert name in DTYPE_BYTES, name
    return getattr(torch, name)


def pack(blob: str, tensors: Mapping[str, Tensor | np.ndarray]) -> tuple[list[memoryview], dict[str, TensorRef]]:
    """(parts, refs): the bytes of one blob, in order, and the position of each tensor in it.

    The parts view the tensors' own memory where they are contiguous on the CPU: store them before changing the tensors.
    Raises `CodecError` for a dtype that a reference cannot name.
    """
    import torch

    parts: list[memoryview] = []
    refs: dict[str, TensorRef] = {}
    offset = 0
    for name, given in tensors.items():
        tensor = torch.as_tensor(given).detach().cpu().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in DTYPE_BYTES:
            raise CodecError(
                f"{name!r} has dtype {tensor.dtype}, which does not travel; cast it to {sorted(DTYPE_BYTES)}"
            )
        ref = TensorRef(blob=blob, dtype=dtype, shape=tuple(tensor.shape), offset=offset)
        # numpy has no bfloat16, but every dtype can be viewed as bytes.
        parts.append(tensor.reshape(-1).view(torch.uint8).numpy().data)
        refs[name] = ref
        offset += ref.nbytes
    return parts, refs


def unpack(ref: TensorRef, data: bytes | memoryview) -> Tensor:
    """The tensor of the bytes ``data``, on the CPU, in its own memory. Raises `CodecError` where their number does not fit."""
    import torch

    if len(data) != ref.nbytes:
        raise CodecError(f"{ref.dtype} {list(ref.shape)} needs {ref.nbytes} bytes, blob {ref.blob!r} gave {len(data)}")
    if ref.nbytes == 0:
        return torch.empty(ref.shape, dtype=dtype_named(ref.dtype))
    # The copy makes the tensor writable and aligned; ``data`` may be neither.
    return torch.frombuffer(bytearray(data), dtype=dtype_named(ref.dtype)).reshape(ref.shape)


def read(blobs: BlobStore, ref: TensorRef, rows: slice | None = None) -> Tensor:
    """Fetch a tensor, or only ``rows`` of its first axis (contiguous: step 1), transferring no other byte.

    Raises `BlobMissing` when the blob is gone, `CodecError` when it is shorter than the reference says.
    """
    if rows is not None:
        ref = rows_of(ref, rows)
    return unpack(ref, blobs.get(ref.blob, ref.offset, ref.nbytes))


def rows_of(ref: TensorRef, rows: slice) -> TensorRef:
    """The reference to only those rows of the tensor's first axis (contiguous: step 1)."""
    if not ref.shape:
        raise ValueError(f"blob {ref.blob!r} holds a scalar there, which has no rows")
    start, stop, step = rows.indices(ref.shape[0])
    if step != 1:
        raise ValueError(f"rows must be contiguous, got step {step}; read a covering range and index it")
    row_bytes = prod(ref.shape[1:]) * DTYPE_BYTES[ref.dtype]
    shape = (max(0, stop - start), *ref.shape[1:])
    return TensorRef(blob=ref.blob, dtype=ref.dtype, shape=shape, offset=ref.offset + start * row_bytes)
