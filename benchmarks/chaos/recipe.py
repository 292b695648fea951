"""The recipe of the chaos runs: a slow on-policy toy that writes every drawn or scored sample into a journal.

The command gets it as ``recipe.py:chaos``. With ``max_lag 0`` its trained weights do not depend on failures.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from drover.common.media.media import Media
from drover.common.policies.wrapped import Wrapped
from drover.common.prompts import Prompt
from drover.common.protocols import Conditioning, Policy, Scorer, Scores
from drover.deploy.config import Pools, RunConfig
from drover.deploy.recipes.toy_ddpo import toy_ddpo
from drover.reward_servers.rewards.toy_point import ToyPoint
from drover.worlds.plane.slow import Slow, SlowToy

SCHEME = "file:"  # a plain path would be compared by content when the run is resumed, and the journal changes


def chaos(
    *,
    journal: Path,
    iterations: int = 40,
    groups: int = 4,
    samples: int = 64,
    max_lag: int = 0,
    pause_s: float = 0.05,
    actors: int = 1,
    learner_ranks: int = 1,
    checkpoint_every: int = 5,
    lease_s: float = 30.0,
    stall_s: float = 120.0,
) -> RunConfig:
    """Train the toy with slow actors and rewards that write a journal."""
    where = f"{SCHEME}{journal.resolve()}"
    return replace(
        toy_ddpo(),
        recipe="chaos",
        model=NotingToy(pause_s / samples, where),
        rewards=(NotingReward(ToyPoint(), pause_s / samples, where),),
        iterations=iterations,
        groups=groups,
        samples=samples,
        max_lag=max_lag,
        pools=Pools(actors=actors, learner_ranks=learner_ranks),
        checkpoint_every=checkpoint_every,
        lease_s=lease_s,
        stall_s=stall_s,
    )


@dataclass(frozen=True)
class NotingToy(SlowToy):
    """A `SlowToy` that writes the number of drawn samples into the journal."""

    journal: str

    def build(self, device: str) -> Policy:
        return NotingChain(super().build(device), self.journal)


class NotingChain(Wrapped):
    def __init__(self, policy: Policy, journal: str) -> None:
        super().__init__(policy)
        self._journal = journal

    def decode(self, x0: Tensor, cond: Conditioning) -> Media:
        media = super().decode(x0, cond)
        note(self._journal, "actor", len(x0))
        return media


@dataclass(frozen=True)
class NotingReward(Slow):
    """A slow reward that writes the number of scored samples into the journal."""

    journal: str

    def load(self, device: str) -> Scorer:
        scorer = super().load(device)

        def score(prompts: Sequence[Prompt], media: Any) -> Scores:
            scores = scorer(prompts, media)
            note(self.journal, "reward", len(prompts))
            return scores

        return score


def note(journal: str, role: str, samples: int) -> None:
    """Append one line to the journal: ``ROLE PID SAMPLES``. Lines of several processes do not mix."""
    with open(journal.removeprefix(SCHEME), "ab", buffering=0) as file:
        file.write(f"{role} {os.getpid()} {samples}\n".encode())
