"""The classifiers of the shapes world, as descriptions that rewards over classes can load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from drover.worlds.shapes import truth


@dataclass(frozen=True, slots=True)
class Tones:
    """The four skin tones, read from the pixels by `drover.worlds.shapes.truth.tone`."""

    @property
    def classes(self) -> tuple[str, ...]:
        return ("darkest", "dark", "light", "lightest")

    def load(self, device: str) -> Callable[[np.ndarray], list[int | None]]:
        """The classifier: [N, 32, 32, 3] uint8 to [N] tones 0 to 3; None where there is no head."""
        return lambda media: [truth.tone(image) for image in media]
