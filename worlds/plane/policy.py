"""A chain of five Gaussian steps in the plane: the smallest policy that can be trained, with outcomes known in advance.

    x' = 0.8 x + (0.35, 0.35) + b_t + 0.6 z,    x_T ~ N(0, I)

A step is the consistency step on a path that stays at a = 0.8, s = 0.6, with x0 = x + (0.35 + b_t) / 0.8. So the chain runs
through the same kernel as real models, and its prediction fulfils x = a x0 + s noise like theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from drover.common.diffusion.noising import DiscreteSchedule
from drover.common.errors import MediaError
from drover.common.media.media import Media, of_kind
from drover.common.media.pictures import Pictures
from drover.common.protocols import Conditioning, Prediction
from drover.worlds.plane.model import NUM_STEPS

CONTRACTION, DRIFT = 0.8, 0.35
RANGE = 8.0  # media hold coordinates in [-RANGE, RANGE]; others are clipped
LEVELS = 2**16 - 1  # 16 bits per coordinate: a resolution of 2.4e-4


class ToyChain:
    """A policy over points [B, 2]: it learns one shift per step, ``b`` [5, 2], from 0. Prompts are accepted and ignored."""

    parts = 1
    empty = ""

    def __init__(self, device: str = "cpu") -> None:
        self.latent_shape: tuple[int, ...] = (2,)
        self.schedule = DiscreteSchedule(torch.full((NUM_STEPS,), CONTRACTION**2, dtype=torch.float64))
        self._shifts = Shifts().to(device)

    @property
    def trainable(self) -> nn.Module:
        return self._shifts

    def encode(self, names: Sequence[str]) -> Conditioning:
        return {"text": torch.zeros(len(names), 1, device=self._shifts.b.device)}

    def predict(self, x: Tensor, time: Tensor, cond: Conditioning) -> Prediction:
        x0 = self.output(x, time, cond)
        noise = (x - CONTRACTION * x0) / (1 - CONTRACTION**2) ** 0.5
        return Prediction(x0=x0, noise=noise)

    def output(self, x: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        """x0, which has the least error where b_t = 0.16 x the mean of x0 - 0.35."""
        return x.float() + self._shifts(time) / CONTRACTION

    def target(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return x0

    def decode(self, x0: Tensor, cond: Conditioning) -> Pictures:
        """Pictures of 1 x 2: a pixel per coordinate, its two bytes in red and green. `read_points` inverts it."""
        levels = (x0.detach().float().clamp(-RANGE, RANGE) + RANGE) / (2 * RANGE) * LEVELS
        whole = levels.round().int().cpu().numpy()
        pixels = np.zeros((len(whole), 1, 2, 3), np.uint8)
        pixels[:, 0, :, 0], pixels[:, 0, :, 1] = whole >> 8, whole & 255
        return Pictures(pixels)

    def to_latents(self, media: Media) -> Tensor:
        return torch.tensor(read_points(of_kind(media, Pictures)), dtype=torch.float32, device=self._shifts.b.device)


class Shifts(nn.Module):
    """The network of `ToyChain`: one learned drift for each step."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.zeros(NUM_STEPS, 2))

    def forward(self, time: Tensor) -> Tensor:
        """[B, 2] drift at time [B] in 0..4."""
        return DRIFT + self.b[time.long()]


def read_points(media: Pictures) -> np.ndarray:
    """[N, 2] float64 coordinates of the points in N pictures of 1 x 2 pixels, to 1.3e-4 inside the range."""
    pixels = media.pixels
    if pixels.shape[1:] != (1, 2, 3):
        raise MediaError(
            f"a point of the plane is a picture of 1 x 2 pixels, got {pixels.shape[1]} x {pixels.shape[2]}"
        )
    whole = pixels[:, 0, :, 0].astype(np.int64) << 8 | pixels[:, 0, :, 1]
    return whole / LEVELS * 2 * RANGE - RANGE
