"""Slow down the plane's policy or any reward by a sleep of given seconds a sample.

So a run of the toy takes long enough to be watched, and a small machine can run a large service.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from drover.common.media.media import Media
from drover.common.policies.wrapped import Wrapped
from drover.common.prompts import Prompt
from drover.common.protocols import Conditioning, Policy, Reward, Scorer, Scores, SetScorer
from drover.worlds.plane.model import ToyModel


@dataclass(frozen=True)
class SlowToy(ToyModel):
    """The five-step chain, whose decoder sleeps ``sample_s`` seconds for each sample."""

    sample_s: float

    def build(self, device: str) -> Policy:
        return SlowChain(super().build(device), self.sample_s)


class SlowChain(Wrapped):
    """A policy that sleeps ``sample_s`` seconds for each sample that it decodes."""

    def __init__(self, policy: Policy, sample_s: float) -> None:
        super().__init__(policy)
        self._sample_s = sample_s

    def decode(self, x0: Tensor, cond: Conditioning) -> Media:
        time.sleep(self._sample_s * len(x0))
        return super().decode(x0, cond)


@dataclass(frozen=True)
class Slow:
    """A reward of single samples that sleeps ``sample_s`` seconds for each sample and then measures as ``reward`` does."""

    reward: Reward
    sample_s: float

    @property
    def name(self) -> str:
        return self.reward.name

    @property
    def takes(self) -> type[Media]:
        return self.reward.takes

    def load(self, device: str) -> Scorer:
        scorer = self.reward.load(device)
        assert not isinstance(scorer, SetScorer), f"{self.name} measures sets"

        def score(prompts: Sequence[Prompt], media: Any) -> Scores:
            time.sleep(self.sample_s * len(prompts))
            return scorer(prompts, media)

        return score
