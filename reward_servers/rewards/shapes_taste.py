"""Score pictures by the true taste of the shapes world's raters, to which a learned preference is compared on held-out sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from drover.common.errors import ScoringFailed
from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.protocols import Scores
from drover.worlds.shapes.scenes import CANVAS
from drover.worlds.shapes.taste import taste


@dataclass(frozen=True, slots=True)
class ShapesTaste:
    """Value in [0, 1), computed by `drover.worlds.shapes.taste`, which explains its terms and its intended bias.

    A prompt that is not of that world is masked with ``prompt``.
    """

    name: str = "taste"
    packages: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[type[Media]] = Pictures

    def load(self, device: str) -> TasteScorer:
        return TasteScorer()


class TasteScorer:
    def __call__(self, prompts: Sequence[str], media: Pictures) -> Scores:
        if media.pixels.shape[1:3] != (CANVAS, CANVAS):
            raise ScoringFailed(
                f"pictures of the shapes world are {CANVAS} x {CANVAS} pixels, got {media.pixels.shape[1:3]}"
            )
        values = [_taste(prompt, image) for prompt, image in zip(prompts, media.pixels, strict=True)]
        return Scores(values, reasons=["prompt" if math.isnan(value) else "" for value in values])


def _taste(prompt: str, image: np.ndarray) -> float:
    try:
        return taste(prompt, image)
    except ValueError:
        return math.nan
