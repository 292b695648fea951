"""Share data between the learner's ranks, besides gradients: iterations from rank 0, and sums of a few numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from drover.common.transport import codec
from drover.common.types import RolloutGroup
from drover.learner.examples import Credit


@dataclass(frozen=True, slots=True)
class Iteration:
    """The groups that all ranks learn from next, with their credit; none where a run learns from files alone."""

    groups: tuple[RolloutGroup, ...] = ()
    credit: Credit | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """The message that the run ends before its last iteration. ``reason``: "asked", or "overoptimised"."""

    reason: str


def share(mine: Iteration | Stop | None) -> Iteration | Stop:
    """Send rank 0's iteration to every rank. Messages are codec bytes, of which nothing can execute."""
    if dist.get_world_size() == 1:
        assert mine is not None
        return mine
    return _read(_broadcast(None if mine is None else _write(mine)))


def all_sum(values: Sequence[float]) -> list[float]:
    """Each number summed over the ranks, in double precision."""
    if dist.get_world_size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=_device())
    dist.all_reduce(tensor)
    return tensor.tolist()


def _write(mine: Iteration | Stop) -> bytes:
    """A JSON header, then the messages, then the arrays of the credit."""
    if isinstance(mine, Stop):
        return _with_header({"stop": mine.reason}, [])
    messages = [codec.encode(group) for group in mine.groups]
    header: dict[str, object] = {"messages": [len(message) for message in messages]}
    if mine.credit is None:
        return _with_header(header, messages)
    arrays = [np.ascontiguousarray(array) for array in (mine.credit.rows, mine.credit.weights)]
    header |= {"terms": mine.credit.terms, "arrays": [(array.dtype.str, array.shape) for array in arrays]}
    return _with_header(header, [*messages, *(array.tobytes() for array in arrays)])


def _with_header(header: dict[str, object], parts: Sequence[bytes]) -> bytes:
    head = json.dumps(header).encode()
    return b"".join([len(head).to_bytes(4, "little"), head, *parts])


def _read(data: bytes) -> Iteration | Stop:
    end = 4 + int.from_bytes(data[:4], "little")
    header = json.loads(data[4:end])
    if "stop" in header:
        return Stop(header["stop"])
    groups = []
    for size in header["messages"]:
        message = codec.decode(data[end : end + size])
        assert isinstance(message, RolloutGroup), message
        groups.append(message)
        end += size
    arrays = []
    for kind, shape in header.get("arrays", ()):
        array = np.frombuffer(data, np.dtype(kind), int(np.prod(shape)), end).reshape(shape)
        arrays.append(array)
        end += array.nbytes
    credit = Credit(arrays[0], arrays[1], header["terms"]) if arrays else None
    return Iteration(tuple(groups), credit)


def _broadcast(data: bytes | None) -> bytes:
    size = torch.tensor([0 if data is None else len(data)], device=_device())
    dist.broadcast(size, src=0)
    payload = torch.empty(int(size.item()), dtype=torch.uint8, device=_device())
    if data is not None:
        payload.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    dist.broadcast(payload, src=0)
    return payload.cpu().numpy().tobytes()


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
