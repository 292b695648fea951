"""Score pictures by a small image-and-text model that `fit_evaluator` fitted to the choices of raters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.protocols import Scores

if TYPE_CHECKING:
    from drover.reward_servers.evaluators.preference import PreferenceModel


@dataclass(frozen=True, slots=True)
class LearnedPreference:
    """Unit: log-odds of the raters' choice; unbounded, in practice about -6 to 6, near 0 for a prompt's usual picture.

    ``checkpoint`` is a folder that ``fit_evaluator(pairs).model.save(folder)`` wrote; a missing or damaged one is a
    `ConfigError` at start-up. Pictures of any size are resized to the model's. A prompt without a single word that the model
    has learned is masked with ``unknown_words``. Source: Bradley-Terry on pairs, as ImageReward (arXiv 2304.05977).
    """

    checkpoint: Path | str
    name: str = "preference"
    packages: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[type[Media]] = Pictures

    def load(self, device: str) -> PreferenceScorer:
        from drover.reward_servers.evaluators.preference import load

        return PreferenceScorer(load(self.checkpoint, device))


@dataclass(frozen=True, slots=True)
class PreferenceScorer:
    model: PreferenceModel

    def __call__(self, prompts: Sequence[str], media: Pictures) -> Scores:
        values = self.model.score(prompts, media.pixels).tolist()
        known = [self.model.knows(prompt) for prompt in prompts]
        return Scores(
            [value if sure else math.nan for value, sure in zip(values, known, strict=True)],
            reasons=["" if sure else "unknown_words" for sure in known],
        )
