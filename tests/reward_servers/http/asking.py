"""An `HttpScorer` asked as reward servers do, in fewer words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.prompts import Prompt
from drover.common.protocols import Scores
from drover.reward_servers.rewards.http_reward import HttpReward, HttpScorer


def slices(sizes: Sequence[int]) -> list[slice]:
    """Rows of sets of those sizes, one after the other."""
    return [slice(end - size, end) for end, size in zip(accumulate(sizes), sizes, strict=True)]


class Asking:
    """``Asking(HttpReward("taste", url))(["a", "b"], pixels)``; every sample is a set of its own unless sizes are given."""

    def __init__(self, reward: HttpReward) -> None:
        self.scorer: HttpScorer = reward.load("cpu")

    def __call__(self, prompts: Sequence[str], media: Media | np.ndarray, sizes: Sequence[int] | None = None) -> Scores:
        asked = [prompt if isinstance(prompt, Prompt) else Prompt(prompt) for prompt in prompts]
        shown = Pictures(media) if isinstance(media, np.ndarray) else media
        return self.scorer.score_sets(asked, shown, slices(sizes or [1] * len(asked)))

    @property
    def requests(self) -> int:
        return self.scorer.requests

    @property
    def retried(self) -> int:
        return self.scorer.retried
