"""What the learner's ranks tell each other besides gradients: bytes from rank 0, and sums of a few numbers."""

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
    """What all ranks learn from next; or why the run ends instead: "asked", or "overoptimised"."""

    groups: tuple[RolloutGroup, ...] = ()
    credits: tuple[Credit, ...] = ()
    stop: str = ""


def share(iteration: Iteration | None) -> Iteration:
    """Rank 0's iteration on every rank. Messages travel as the codec writes them: nothing here can execute."""
    if dist.get_world_size() == 1:
        assert iteration is not None
        return iteration
    return _read(_broadcast(None if iteration is None else _write(iteration)))


def all_sum(values: Sequence[float]) -> list[float]:
    """Each number summed over the ranks, in double precision."""
    if dist.get_world_size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=_device())
    dist.all_reduce(tensor)
    return tensor.tolist()


def _write(iteration: Iteration) -> bytes:
    messages = [codec.encode(group) for group in iteration.groups]
    weights = [np.stack([credit.weights, credit.counted]).tobytes() for credit in iteration.credits]
    header = {"stop": iteration.stop, "messages": [len(m) for m in messages], "weights": [len(w) for w in weights]}
    head = json.dumps(header).encode()
    return b"".join([len(head).to_bytes(4, "little"), head, *messages, *weights])


def _read(data: bytes) -> Iteration:
    end = 4 + int.from_bytes(data[:4], "little")
    header = json.loads(data[4:end])
    groups, credits = [], []
    for size in header["messages"]:
        message = codec.decode(data[end : end + size])
        assert isinstance(message, RolloutGroup), message
        groups.append(message)
        end += size
    for size in header["weights"]:
        weights, counted = np.frombuffer(data, np.float64, size // 8, end).reshape(2, -1)
        credits.append(Credit(weights, counted.astype(bool)))
        end += size
    return Iteration(tuple(groups), tuple(credits), header["stop"])


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
