"""Pictures: 8-bit RGB, all of one size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from drover.common.media.media import check


@dataclass(frozen=True, slots=True)
class Pictures:
    """N pictures: ``pixels`` [N, H, W, 3] uint8, red, green and blue in 0..255."""

    pixels: np.ndarray
    kind: ClassVar[str] = "picture"

    def __post_init__(self) -> None:
        check(self, pixels="uint8 N H W 3")

    def __len__(self) -> int:
        return len(self.pixels)

    def pictures(self) -> np.ndarray:
        """The pixels themselves."""
        return self.pixels
