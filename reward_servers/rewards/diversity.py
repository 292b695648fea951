"""Score how much the samples of a prompt differ from each other: a reward over sets, which shows if a run loses variety.

Source: the mean distance between samples of one condition, as in "Toward Multimodal Image-to-Image Translation" (arXiv
1711.11586), section 5; the distance there is that of a network's features, here that of coarse pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.protocols import Scores
from drover.reward_servers.serving.sets import members

COARSE_PX = 32  # fine texture and noise are averaged away down to this side


@dataclass(frozen=True, slots=True)
class Diversity:
    """Value of a sample: its mean distance to the others of its set, so that the mean of a set is its mean pairwise distance.

    The distance of two pictures is the root mean square difference of their pixels, as a share of 255 and averaged over
    blocks to a shorter side of 32 to 63 pixels: unitless, from 0, all alike, to 1, black beside white. Its expectation does
    not depend on the number of samples in a set. Moving contours raise it, and so does coarse noise: it judges a run, and is
    no goal to train towards. A set of one sample is masked "few".
    """

    name: str = "diversity"
    packages: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[type[Media]] = Pictures

    def load(self, device: str) -> DiversityScorer:
        return DiversityScorer()


@dataclass(frozen=True, slots=True)
class DiversityScorer:
    def score_sets(self, prompts: Sequence[str], media: Pictures, sets: Sequence[slice]) -> Scores:
        """The value of each sample. Raises `ScoringFailed` when the sets leave a sample out or share one."""
        values, reasons = [math.nan] * len(media), ["few"] * len(media)
        for rows in members(sets, len(media)):
            if len(rows) > 1:
                values[rows.start : rows.stop] = _mean_distances(_coarse(media.pixels[rows.start : rows.stop])).tolist()
                reasons[rows.start : rows.stop] = [""] * len(rows)
        return Scores(values, reasons)


def _coarse(pixels: np.ndarray) -> np.ndarray:
    """[N, D] float64 in [0, 1]: the means of square blocks, without the remaining pixels at the right and the bottom."""
    count, height, width, _ = pixels.shape
    side = max(1, min(height, width) // COARSE_PX)
    down, across = height // side, width // side
    blocks = pixels[:, : down * side, : across * side].reshape(count, down, side, across, side, 3)
    return blocks.mean(axis=(2, 4)).reshape(count, -1) / 255


def _mean_distances(points_ND: np.ndarray) -> np.ndarray:
    """[N] root mean square distance of each point to the others, averaged over them."""
    centred = points_ND - points_ND.mean(axis=0)  # loses less to cancellation
    squares = np.square(centred).sum(axis=1)
    squared = squares[:, None] + squares[None] - 2 * centred @ centred.T
    np.fill_diagonal(squared, 0.0)
    distances: np.ndarray = np.sqrt(squared.clip(min=0.0) / points_ND.shape[1]).sum(axis=1) / (len(points_ND) - 1)
    return distances
