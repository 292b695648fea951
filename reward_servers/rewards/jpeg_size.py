"""Score a picture by its size as a JPEG file, which is small for plain pictures and large for busy ones.

Source: DDPO (arXiv 2305.13301), section 5: 8-bit RGB, JPEG quality 95, kilobytes of 1000 bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.protocols import Scores

QUALITY = 95


@dataclass(frozen=True, slots=True)
class JpegSize:
    """``prefer="small"`` rewards compressible images (value = -kB), ``"large"`` busy ones (value = +kB).

    Unit: kilobytes. Absolute values at 32x32 range from about 0.64 (one colour) to 1.8 (noise). Values of pictures of
    different sizes cannot be compared.
    """

    takes: ClassVar[type[Media]] = Pictures

    prefer: Literal["small", "large"] = "small"

    @property
    def name(self) -> str:
        return f"jpeg_{self.prefer}"

    def load(self, device: str) -> JpegScorer:
        return JpegScorer(sign=-1.0 if self.prefer == "small" else 1.0)


@dataclass(frozen=True, slots=True)
class JpegScorer:
    sign: float

    def __call__(self, prompts: Sequence[str], media: Pictures) -> Scores:
        return Scores([self.sign * kilobytes(image) for image in media.pixels])


def kilobytes(image: np.ndarray) -> float:
    """Size in kB of a [H, W, 3] uint8 image as JPEG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=QUALITY)
    return file.tell() / 1000
