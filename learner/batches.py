"""Divide an iteration over optimiser steps, ranks and micro-batches; each rank fetches only the rows it trains on.

Every rank runs the same number of micro-batches, so that collectives stay in step; a rank that has fewer runs one
example with weight zero. Examples with weight zero are counted in the mean and not computed.

A *term* is one summand of the loss: an example at one of its recorded steps, or with one of its noise draws.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from drover.common import seeds, tensors
from drover.common.errors import WrongRecipe
from drover.common.policies import conditioning
from drover.common.protocols import BlobStore, Conditioning
from drover.common.types import RolloutGroup, TensorRef, Transitions
from drover.learner.examples import Credit, LatentBatch, StepBatch
from drover.learner.objective import Models, Objective
from drover.learner.ranks import Iteration
from drover.learner.spec import By

Term = tuple[int, int]  # (example, which of its recorded steps or noise draws)
B = TypeVar("B", StepBatch, LatentBatch)
D = TypeVar("D")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's part of one optimiser step."""

    examples: tuple[int, ...]  # indices into the iteration's credit
    num_batches: int  # micro-batches that every rank runs
    turns: tuple[int, ...]  # of each example: indices of its recorded steps, or of its noise draws


def terms_of(iteration: Iteration, objective: Objective) -> int:
    """Terms of each example: its recorded steps, or its noise draws."""
    if objective.learns_from is LatentBatch:
        return objective.needs.draws
    return max((len(_transitions(group).steps) for group in iteration.groups), default=0)


def divide(
    credit: Credit, *, turns: int, updates: int, ranks: int, rank: int, batch_size: int, by: By = "samples"
) -> list[Share]:
    """[updates] shares of one rank, of ``turns`` terms an example. Sizes differ by at most one between ranks and updates.

    ``by`` "samples": an update has some of the examples, with all their steps. "steps": an update has all examples, with
    some of their steps, as in arXiv 2401.12244, where each update has one step. ``batch_size`` counts rows: a pair has two.
    """
    teaching = [int(example) for example in credit.teaching]
    if by == "samples":
        parts = [(part, tuple(range(turns))) for part in split(teaching, updates)]
    else:
        parts = [(teaching, tuple(part)) for part in split(range(turns), updates)]
    shares = []
    for examples, some in parts:
        of_ranks = split(examples, ranks)
        longest = max(len(part) for part in of_ranks) * len(some)
        shares.append(Share(tuple(of_ranks[rank]), -(-longest // _per_batch(credit, batch_size)), some))
    return [share for share in shares if share.num_batches]


@dataclass(frozen=True, slots=True)
class Batches(Generic[B]):
    """The micro-batches of a share, each with a truth value: whether it counts. Can be iterated over more than once."""

    make: Callable[[], Iterator[tuple[B, bool]]]
    num_batches: int

    def __iter__(self) -> Iterator[tuple[B, bool]]:
        return self.make()


class Fetcher(Protocol):
    """Reads the rows of a share and makes micro-batches of them on the device."""

    bytes_read: int

    def batches(self, iteration: Iteration, share: Share, number: int) -> Batches[Any]:
        """The share's micro-batches. ``number`` counts optimiser steps; the noise draws depend on it."""


def open_fetcher(
    objective: Objective, models: Models, blobs: BlobStore, *, seed: int, device: str, batch_size: int
) -> Fetcher:
    """The fetcher for the kind of batch that the objective learns from."""
    if objective.learns_from is LatentBatch:
        return LatentFetcher(models, blobs, seed=seed, device=device, batch_size=batch_size)
    return StepFetcher(models, blobs, device=device, batch_size=batch_size)


class _Fetcher(ABC, Generic[B, D]):
    """Reads rows of groups (D: the rows of one group) and joins terms into batches (B)."""

    def __init__(self, models: Models, blobs: BlobStore, *, device: str, batch_size: int) -> None:
        self._models, self._blobs, self._device, self._batch_size = models, blobs, device, batch_size
        self._held: tuple[Iteration, tuple[int, ...], dict[int, D]] | None = None
        self.bytes_read = 0

    def batches(self, iteration: Iteration, share: Share, number: int) -> Batches[B]:
        return Batches(lambda: self._batches(iteration, share, number), share.num_batches)

    def _batches(self, iteration: Iteration, share: Share, number: int) -> Iterator[tuple[B, bool]]:
        credit = iteration.credit
        assert credit is not None
        loaded = self._rows(iteration, credit, share.examples)
        cond = _Conditions(self._models, iteration.groups)
        terms = [(example, turn) for example in share.examples for turn in share.turns]
        size = _per_batch(credit, self._batch_size)
        for start in range(0, share.num_batches * size, size):
            chosen = terms[start : start + size]
            counts = bool(chosen)
            chosen = chosen or [(self._placeholder(share, credit), share.turns[0])]
            weights = torch.from_numpy(credit.weights[[example for example, _ in chosen]]).float()
            weights = weights if counts else torch.zeros_like(weights)
            sides = range(credit.rows.shape[1])
            rows = [tuple(credit.rows[example, side].tolist()) for side in sides for example, _ in chosen]
            yield self._batch(iteration, loaded, chosen * len(sides), rows, self._to(weights), cond, number), counts

    def _placeholder(self, share: Share, credit: Credit) -> int:
        """The example that a rank computes with weight 0 where no term is left for it."""
        return share.examples[0] if share.examples else int(credit.teaching[0])

    def _rows(self, iteration: Iteration, credit: Credit, examples: tuple[int, ...]) -> dict[int, D]:
        """Group -> its rows. A share with the same examples as the last one reuses the rows that were read for it."""
        examples = examples or (int(credit.teaching[0]),)
        if self._held is not None and self._held[0] is iteration and self._held[1] == examples:
            return self._held[2]
        self._held = None  # before more is read
        wanted: dict[int, list[int]] = defaultdict(list)
        for group, row in credit.rows[list(examples)].reshape(-1, 2).tolist():
            wanted[group].append(row)
        loaded = {group: self._load(iteration.groups[group], min(r), max(r) + 1) for group, r in wanted.items()}
        self._held = (iteration, examples, loaded)
        return loaded

    def _read(self, ref: TensorRef, start: int, stop: int) -> Tensor:
        found = tensors.read(self._blobs, ref, slice(start, stop))
        self.bytes_read += found.nbytes
        return found

    def _to(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, non_blocking=True)

    @abstractmethod
    def _load(self, group: RolloutGroup, start: int, stop: int) -> D: ...

    @abstractmethod
    def _batch(
        self,
        iteration: Iteration,
        loaded: dict[int, D],
        terms: Sequence[Term],
        rows: Sequence[tuple[int, int]],
        weight: Tensor,
        cond: _Conditions,
        number: int,
    ) -> B:
        """Join terms into a batch. ``terms`` and ``rows``, (group, sample), are [A B], side after side; ``weight`` is [B, S]."""


@dataclass(frozen=True, slots=True)
class _Steps:
    """Rows ``first`` onwards of one group."""

    first: int
    states: Tensor  # [rows, U, *latent]
    log_probs: Tensor  # [rows, K, S]
    of: Transitions


class StepFetcher(_Fetcher[StepBatch, _Steps]):
    """Makes batches of recorded denoising steps."""

    def __init__(self, models: Models, blobs: BlobStore, *, device: str, batch_size: int) -> None:
        super().__init__(models, blobs, device=device, batch_size=batch_size)
        self._times = models.kernel.times(models.policy.schedule)

    def _load(self, group: RolloutGroup, start: int, stop: int) -> _Steps:
        of = _transitions(group)
        self._check_times(of)
        return _Steps(start, self._read(of.states, start, stop).float(), self._read(of.log_probs, start, stop), of)

    def _check_times(self, transitions: Transitions) -> None:
        mine = [(self._times[i], self._times[i + 1]) for i in transitions.steps]
        theirs = list(zip(transitions.times, transitions.next_times, strict=True))
        if mine != theirs:
            raise WrongRecipe(f"an actor stepped through times {theirs}, this learner's kernel through {mine}")

    def _batch(
        self,
        iteration: Iteration,
        loaded: dict[int, _Steps],
        terms: Sequence[Term],
        rows: Sequence[tuple[int, int]],
        weight: Tensor,
        cond: _Conditions,
        number: int,
    ) -> StepBatch:
        at = [(loaded[group], row - loaded[group].first, k) for (group, row), (_, k) in zip(rows, terms, strict=True)]
        return StepBatch(
            x=self._to(torch.stack([data.states[i, data.of.before[k]] for data, i, k in at])),
            x_next=self._to(torch.stack([data.states[i, data.of.after[k]] for data, i, k in at])),
            time=self._to(torch.tensor([data.of.times[k] for data, _, k in at])),
            next_time=self._to(torch.tensor([data.of.next_times[k] for data, _, k in at])),
            log_prob=self._to(torch.stack([data.log_probs[i, k] for data, i, k in at])),
            weight=weight,
            cond=cond.rows(rows),
        )


@dataclass(frozen=True, slots=True)
class _Latents:
    """Rows ``first`` onwards of one group."""

    first: int
    x0: Tensor  # [rows, *latent]


class LatentFetcher(_Fetcher[LatentBatch, _Latents]):
    """Makes batches of clean latents, each row with its own generator for noise and time."""

    def __init__(self, models: Models, blobs: BlobStore, *, seed: int, device: str, batch_size: int) -> None:
        super().__init__(models, blobs, device=device, batch_size=batch_size)
        self._seed = seed

    def _load(self, group: RolloutGroup, start: int, stop: int) -> _Latents:
        assert group.latents is not None, f"group {group.group} was issued without clean latents"
        return _Latents(start, self._read(group.latents, start, stop).float())

    def _batch(
        self,
        iteration: Iteration,
        loaded: dict[int, _Latents],
        terms: Sequence[Term],
        rows: Sequence[tuple[int, int]],
        weight: Tensor,
        cond: _Conditions,
        number: int,
    ) -> LatentBatch:
        sides = [i // len(weight) for i in range(len(rows))]
        draws = [
            draw_of(self._seed, number, example, side, turn) for side, (example, turn) in zip(sides, terms, strict=True)
        ]
        return LatentBatch(
            x0=self._to(torch.stack([loaded[group].x0[row - loaded[group].first] for group, row in rows])),
            weight=weight,
            cond=cond.rows(rows),
            draws=draws,
        )


def draw_of(seed: int, number: int, example: int, side: int, turn: int) -> torch.Generator:
    """The generator of one noise draw of optimiser step ``number``, the same on any rank."""
    return torch.Generator().manual_seed(seeds.derive(seed, "learn", number, example, side, turn))


class _Conditions:
    """The conditioning of every row of an iteration's groups."""

    def __init__(self, models: Models, groups: Sequence[RolloutGroup]) -> None:
        self._groups = groups
        self._first: list[int] = []
        prompts: list[str] = []
        for group in groups:
            self._first.append(len(prompts))
            prompts += group.prompts
        self._all: Conditioning = models.policy.encode(prompts)

    def rows(self, rows: Sequence[tuple[int, int]]) -> Conditioning:
        """The conditioning of these rows, (group, sample) each."""
        places = [self._first[group] + row // self._groups[group].samples_per_prompt for group, row in rows]
        return conditioning.rows(self._all, places)


def split(items: Sequence[T], parts: int) -> list[Sequence[T]]:
    """Contiguous parts whose lengths differ by at most one."""
    ends = [len(items) * i // parts for i in range(parts + 1)]
    return [items[a:b] for a, b in pairwise(ends)]


def _per_batch(credit: Credit, batch_size: int) -> int:
    """Examples of a micro-batch."""
    return max(1, batch_size // credit.rows.shape[1])


def _transitions(group: RolloutGroup) -> Transitions:
    assert group.transitions is not None, f"group {group.group} was issued without recorded steps"
    return group.transitions
