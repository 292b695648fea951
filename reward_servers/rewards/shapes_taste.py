"""Human preference in the shapes world, as it truly is: what a learned preference is judged by on held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from drover.common.errors import ScoringFailed
from drover.common.protocols import Scores
from drover.worlds.shapes.scenes import CANVAS
from drover.worlds.shapes.taste import taste


@dataclass(frozen=True, slots=True)
class ShapesTaste:
    """Value in [0, 1); see `drover.worlds.shapes.taste` for what earns how much, and for the bias it carries on purpose.

    A prompt that is not of that world is masked with ``prompt``.
    """

    name: str = "taste"
    packages: ClassVar[tuple[str, ...]] = ()

    def load(self, device: str) -> TasteScorer:
        return TasteScorer()


class TasteScorer:
    def __call__(self, prompts: Sequence[str], media: np.ndarray) -> Scores:
        if media.shape[1:] != (CANVAS, CANVAS, 3) or media.dtype != np.uint8:
            raise ScoringFailed(
                f"pictures of the shapes world are uint8 [N, {CANVAS}, {CANVAS}, 3]; got {media.dtype} {list(media.shape)}"
            )
        values = [_taste(prompt, image) for prompt, image in zip(prompts, media, strict=True)]
        return Scores(values, reasons=["prompt" if math.isnan(value) else "" for value in values])


def _taste(prompt: str, image: np.ndarray) -> float:
    try:
        return taste(prompt, image)
    except ValueError:
        return math.nan
