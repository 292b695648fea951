"""A deliberately bad proxy for `drover.worlds.shapes.taste`, for tests of over-optimisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.protocols import Scores
from drover.worlds.shapes.renderer import BACKGROUND


@dataclass(frozen=True, slots=True)
class BadTaste:
    """Value in [0, 1]: the mean distance of the pixels' colours from the background's. The prompt does not matter.

    On the pipeline's first pictures, larger things raise this value and taste alike; its best picture is black all over,
    which no rater likes.
    """

    name: str = "preference"
    packages: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[type[Media]] = Pictures

    def load(self, device: str) -> BadTasteScorer:
        return BadTasteScorer()


class BadTasteScorer:
    def __call__(self, prompts: Sequence[str], media: Pictures) -> Scores:
        away = np.linalg.norm(media.pixels.astype(np.float32) - BACKGROUND, axis=-1).mean((1, 2))
        return Scores((away / np.linalg.norm(BACKGROUND)).tolist())
