"""Structures: solid bodies on a grid of voxels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from drover.common.media.media import check

GAP_PX = 2  # between the views
FAINTEST = 80  # grey levels by which the pixel of a single voxel is darker than white


@dataclass(frozen=True, slots=True)
class Structures:
    """N structures: ``occupied`` [N, X, Y, Z] uint8, 0 where a voxel is empty, z upwards; a voxel's side is ``voxel_m``."""

    occupied: np.ndarray
    voxel_m: float
    kind: ClassVar[str] = "structure"

    def __post_init__(self) -> None:
        check(self, occupied="uint8 N X Y Z")

    def __len__(self) -> int:
        return len(self.occupied)

    def pictures(self) -> np.ndarray:
        """[N, H, W, 3]: the structure from the front (x right, z up), the side (y right, z up) and above (x right, y up).

        A pixel is a ray through the structure; it is darker the more of the ray is occupied.
        """
        filled = self.occupied != 0
        views = [filled.mean(axis=axis).transpose(0, 2, 1)[:, ::-1] for axis in (2, 1, 3)]
        height = max(view.shape[1] for view in views)
        whole = np.concatenate([_panel(view, height) for view in views], axis=2)[:, :, :-GAP_PX]
        return np.repeat(whole[..., None], 3, axis=-1)


def _panel(share_NHW: np.ndarray, height: int) -> np.ndarray:
    """[N, height, W + gap] grey levels of one view, aligned at the lower edge."""
    dark = np.where(share_NHW > 0, FAINTEST + (255 - FAINTEST) * share_NHW, 0)
    levels = (255 - dark).round().astype(np.uint8)
    return np.pad(levels, [(0, 0), (height - levels.shape[1], 0), (0, GAP_PX)], constant_values=255)
