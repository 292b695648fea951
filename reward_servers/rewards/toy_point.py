"""Score the end point of the toy chain by minus its squared distance from a goal, whose optimum is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.protocols import Scores


@dataclass(frozen=True, slots=True)
class ToyPoint:
    """Unit: squared distance, at most 0. The chain's own noise keeps the mean at or below about -2."""

    takes: ClassVar[type[Media]] = Pictures

    goal: tuple[float, float] = (-1.0, 1.0)
    name: str = "point"

    def load(self, device: str) -> ToyPointScorer:
        return ToyPointScorer(self.goal)


@dataclass(frozen=True, slots=True)
class ToyPointScorer:
    goal: tuple[float, float]

    def __call__(self, prompts: Sequence[str], media: Pictures) -> Scores:
        from drover.worlds.plane.policy import read_points

        return Scores([float(value) for value in -((read_points(media) - np.asarray(self.goal)) ** 2).sum(-1)])
