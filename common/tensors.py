"""TensorRef <-> Tensor: how tensors become the bytes of a blob and come back. Knows no Redis and no message."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import torch
from torch import Tensor

from drover.common.errors import CodecError
from drover.common.protocols import BlobStore
from drover.common.types import DTYPE_BYTES, TensorRef

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_BYTES}
NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}


def pack(blob: str, tensors: Mapping[str, Tensor | np.ndarray]) -> tuple[list[memoryview], dict[str, TensorRef]]:
    """(parts, refs): the bytes of one blob, in order, and where each tensor lies in it.

    The parts view the tensors' own memory where they are contiguous on the CPU: store them before changing the tensors.
    Raises `CodecError` for a dtype that does not travel.
    """
    parts: list[memoryview] = []
    refs: dict[str, TensorRef] = {}
    offset = 0
    for name, given in tensors.items():
        tensor = torch.as_tensor(given).detach().cpu().contiguous()
        if tensor.dtype not in NAMES:
            raise CodecError(f"{name!r} has dtype {tensor.dtype}, which does not travel; cast it to {sorted(DTYPES)}")
        ref = TensorRef(blob=blob, dtype=NAMES[tensor.dtype], shape=tuple(tensor.shape), offset=offset)
        # numpy knows no bfloat16, but every dtype can be seen as bytes.
        parts.append(tensor.reshape(-1).view(torch.uint8).numpy().data)
        refs[name] = ref
        offset += ref.nbytes
    return parts, refs


def unpack(ref: TensorRef, data: bytes | memoryview) -> Tensor:
    """The tensor, on the CPU, in memory of its own. ``data`` is its bytes; raises `CodecError` unless they fit."""
    if len(data) != ref.nbytes:
        raise CodecError(f"{ref.dtype} {list(ref.shape)} needs {ref.nbytes} bytes, blob {ref.blob!r} gave {len(data)}")
    if ref.nbytes == 0:
        return torch.empty(ref.shape, dtype=DTYPES[ref.dtype])
    # The copy makes the tensor writable and aligned; ``data`` may be neither.
    return torch.frombuffer(bytearray(data), dtype=DTYPES[ref.dtype]).reshape(ref.shape)


def read(blobs: BlobStore, ref: TensorRef, rows: slice | None = None) -> Tensor:
    """Fetch a tensor, or only ``rows`` of its first axis (contiguous: step 1), transferring no other byte.

    Raises `BlobMissing` when the blob is gone, `CodecError` when it is shorter than the reference says.
    """
    if rows is not None:
        ref = rows_of(ref, rows)
    return unpack(ref, blobs.get(ref.blob, ref.offset, ref.nbytes))


def rows_of(ref: TensorRef, rows: slice) -> TensorRef:
    """The reference to those rows of its first axis alone (contiguous: step 1)."""
    if not ref.shape:
        raise ValueError(f"blob {ref.blob!r} holds a scalar there, which has no rows")
    start, stop, step = rows.indices(ref.shape[0])
    if step != 1:
        raise ValueError(f"rows must be contiguous, got step {step}; read a covering range and index it")
    row_bytes = prod(ref.shape[1:]) * DTYPE_BYTES[ref.dtype]
    shape = (max(0, stop - start), *ref.shape[1:])
    return TensorRef(blob=ref.blob, dtype=ref.dtype, shape=shape, offset=ref.offset + start * row_bytes)
