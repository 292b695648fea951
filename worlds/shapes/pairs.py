"""Draw pairs of the pretraining distribution on demand; training on them keeps the pipeline from forgetting it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from drover.common import seeds
from drover.common.media.pictures import Pictures
from drover.common.protocols import FileBatch
from drover.worlds.shapes.build.pretraining import sample_pair
from drover.worlds.shapes.renderer import render


@dataclass(frozen=True, slots=True)
class ShapesPairs:
    """An endless source of [32, 32, 3] pictures with captions, false as often as in `pretraining`. Needs no file."""

    def open(self, seed: int) -> ShapesSource:
        return ShapesSource(seed)


@dataclass(frozen=True, slots=True)
class ShapesSource:
    """Draws pair i from (seed, i) alone; no pair is bad."""

    seed: int

    @property
    def skipped(self) -> Mapping[str, int]:
        return {}

    def batch(self, step: int, size: int) -> FileBatch:
        """Batch number ``step`` of pictures with captions; rank r of R calls ``batch(step * R + r, size // R)``."""
        pairs = [sample_pair(self._rng(index)) for index in range(step * size, (step + 1) * size)]
        return FileBatch(Pictures(np.stack([render(scene) for scene, _ in pairs])), [caption for _, caption in pairs])

    def _rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng(seeds.derive(self.seed, "shapes pair", index))
