"""Clips: moving pictures without sound, all of one length and size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from drover.common.media.media import check

STRIP_FRAMES = 4  # frames of a clip in its film strip, the first and the last among them
GAP_PX = 2  # of white between two frames


@dataclass(frozen=True, slots=True)
class Clips:
    """N clips: ``frames`` [N, F, H, W, 3] uint8 RGB, ``fps`` of them a second."""

    frames: np.ndarray
    fps: float
    kind: ClassVar[str] = "clip"

    def __post_init__(self) -> None:
        check(self, frames="uint8 N F H W 3")

    def __len__(self) -> int:
        return len(self.frames)

    def pictures(self) -> np.ndarray:
        """[N, H, W', 3]: a film strip of up to four frames, evenly spaced in time, from left to right."""
        num_frames = self.frames.shape[1]
        chosen = np.linspace(0, num_frames - 1, min(num_frames, STRIP_FRAMES)).round().astype(int)
        spaced = np.pad(self.frames[:, chosen], [(0, 0)] * 3 + [(0, GAP_PX), (0, 0)], constant_values=255)
        return np.concatenate([spaced[:, frame] for frame in range(len(chosen))], axis=2)[:, :, :-GAP_PX]
