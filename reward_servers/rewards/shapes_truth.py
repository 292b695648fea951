"""Score composition in the shapes world from the pixels: whether the named things are there, and in the named relation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.protocols import Scores
from drover.worlds.shapes import truth


@dataclass(frozen=True, slots=True)
class ShapesTruth:
    """Value in [0, 1], computed by `drover.worlds.shapes.truth.composition`. Prompts must be of the shapes world."""

    takes: ClassVar[type[Media]] = Pictures
    name: str = "composition"

    def load(self, device: str) -> ShapesScorer:
        return ShapesScorer()


class ShapesScorer:
    def __call__(self, prompts: Sequence[str], media: Pictures) -> Scores:
        return Scores([truth.composition(prompt, image) for prompt, image in zip(prompts, media.pixels, strict=True)])
