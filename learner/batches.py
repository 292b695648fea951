"""Divide an iteration over optimiser steps, ranks and micro-batches; each rank fetches only the rows it trains on.

Every rank runs the same number of micro-batches, so that collectives stay in step; a rank that has fewer runs one
example with weight zero. Samples with weight zero are counted in the mean and not computed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeVar

import torch
from torch import Tensor

from drover.common import tensors
from drover.common.errors import WrongRecipe
from drover.common.policies import conditioning
from drover.common.protocols import BlobStore, Conditioning, Kernel, Policy
from drover.common.types import RolloutGroup, Transitions
from drover.learner.examples import Credit, StepBatch
from drover.learner.ranks import Iteration

Row = tuple[int, int]  # (index of the group in the iteration, sample)
By = Literal["samples", "steps"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's part of one optimiser step."""

    rows: tuple[Row, ...]
    num_batches: int  # micro-batches that every rank runs
    steps: tuple[int, ...]  # which of the recorded steps, as indices


def divide(
    iteration: Iteration, *, updates: int, ranks: int, rank: int, batch_size: int, by: By = "samples"
) -> list[Share]:
    """[updates] shares of one rank. Sizes differ by at most one row between ranks and between updates.

    ``by`` says what an update has a part of and what it has all of: samples with all their steps, or the other way
    round, as arXiv 2401.12244 does with one step an update.
    """
    rows = [(g, int(row)) for g, credit in enumerate(iteration.credits) for row in credit.weights.nonzero()[0]]
    steps = range(max((len(_transitions(group).steps) for group in iteration.groups), default=0))
    if by == "samples":
        parts = [(part, tuple(steps)) for part in _split(rows, updates)]
    else:
        parts = [(rows, tuple(part)) for part in _split(steps, updates)]
    shares = []
    for some, of_steps in parts:
        of_ranks = _split(some, ranks)
        longest = max(len(part) for part in of_ranks) * len(of_steps)
        shares.append(Share(tuple(of_ranks[rank]), -(-longest // batch_size), of_steps))
    return [share for share in shares if share.num_batches]


def count_terms(credits: Sequence[Credit], groups: Sequence[RolloutGroup]) -> int:
    """The one number that an iteration's sums are divided by: valid samples times their recorded steps."""
    return sum(int(c.counted.sum()) * len(_transitions(g).steps) for c, g in zip(credits, groups, strict=True))


class Fetcher:
    """Turns a share into micro-batches on the device."""

    def __init__(self, policy: Policy, kernel: Kernel, blobs: BlobStore, *, device: str, batch_size: int) -> None:
        self._policy, self._blobs, self._device, self._batch_size = policy, blobs, device, batch_size
        self._times = kernel.times(policy.schedule)
        self.bytes_read = 0

    def batches(self, iteration: Iteration, share: Share) -> Iterator[tuple[StepBatch, bool]]:
        """(micro-batch, whether it counts), ``share.num_batches`` of them."""
        loaded = {g: self._load(iteration, g, rows) for g, rows in _by_group(share.rows or ((0, 0),)).items()}
        cond = self._policy.encode([group.prompts[0] for group in iteration.groups])
        terms = [(g, row, k) for g, row in share.rows for k in share.steps]
        for start in range(0, share.num_batches * self._batch_size, self._batch_size):
            chosen = terms[start : start + self._batch_size]
            if chosen:
                yield self._batch(iteration, loaded, cond, chosen), True
            else:
                some = next(iter(loaded))
                yield self._batch(iteration, loaded, cond, [(some, loaded[some].first, 0)]), False

    def _load(self, iteration: Iteration, g: int, rows: Sequence[int]) -> _Loaded:
        transitions = _transitions(iteration.groups[g])
        self._check_times(transitions)
        span = slice(min(rows), max(rows) + 1)
        states = tensors.read(self._blobs, transitions.states, span).float()
        log_probs = tensors.read(self._blobs, transitions.log_probs, span).squeeze(-1)
        self.bytes_read += states.nbytes + log_probs.nbytes
        return _Loaded(span.start, states, log_probs)

    def _check_times(self, transitions: Transitions) -> None:
        mine = [(self._times[i], self._times[i + 1]) for i in transitions.steps]
        theirs = list(zip(transitions.times, transitions.next_times, strict=True))
        if mine != theirs:
            raise WrongRecipe(f"an actor stepped through times {theirs}, this learner's kernel through {mine}")

    def _batch(
        self,
        iteration: Iteration,
        loaded: dict[int, _Loaded],
        cond: Conditioning,
        terms: Sequence[tuple[int, int, int]],
    ) -> StepBatch:
        moves = [(loaded[g], row - loaded[g].first, k, _transitions(iteration.groups[g])) for g, row, k in terms]
        weights = [float(iteration.credits[g].weights[row]) for g, row, _ in terms]

        def to_device(tensor: Tensor) -> Tensor:
            return tensor.to(self._device, non_blocking=True)

        return StepBatch(
            x=to_device(torch.stack([data.states[i, moved.before[k]] for data, i, k, moved in moves])),
            x_next=to_device(torch.stack([data.states[i, moved.after[k]] for data, i, k, moved in moves])),
            time=to_device(torch.tensor([moved.times[k] for _, _, k, moved in moves])),
            next_time=to_device(torch.tensor([moved.next_times[k] for _, _, k, moved in moves])),
            log_prob=to_device(torch.stack([data.log_probs[i, k] for data, i, k, _ in moves])),
            weight=to_device(torch.tensor(weights, dtype=torch.float32)),
            cond=conditioning.rows(cond, [g for g, _, _ in terms]),
        )


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Rows ``first`` onwards of one group."""

    first: int
    states: Tensor  # [rows, U, *latent]
    log_probs: Tensor  # [rows, K]


def _by_group(rows: Sequence[Row]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for group, row in rows:
        found[group].append(row)
    return found


def _split(items: Sequence[T], parts: int) -> list[Sequence[T]]:
    """Contiguous parts whose lengths differ by at most one."""
    ends = [len(items) * i // parts for i in range(parts + 1)]
    return [items[a:b] for a, b in pairwise(ends)]


def _transitions(group: RolloutGroup) -> Transitions:
    assert group.transitions is not None, f"group {group.group} was issued without recorded steps"
    return group.transitions
