"""Bytes of a picture file to a square of pixels. Decodes with Pillow; reads no file."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

import numpy as np

from drover.learner.files.records import BadRecord

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
FORMATS = ("JPEG", "PNG", "WEBP")  # whatever a file is called; Pillow's other decoders stay shut
MAX_BYTES = 64 << 20
MAX_PIXELS = 64_000_000  # 192 MB once decoded


def decode(data: bytes, resolution: int) -> np.ndarray:
    """[resolution, resolution, 3] uint8: upright, on white, scaled to cover the square, the middle cut out.

    Raises `BadRecord`: "damaged", "too_large", or "not_8_bit" where 8 bits would clip the values.
    """
    from PIL import Image

    if len(data) > MAX_BYTES:
        raise BadRecord("too_large")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadRecord("too_large")
            return np.asarray(_fit(image, resolution))
    except Image.DecompressionBombError:
        raise BadRecord("too_large") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:  # all that Pillow means by "damaged"
        raise BadRecord("damaged") from error


def _fit(image: Image.Image, resolution: int) -> Image.Image:
    from PIL import Image, ImageOps

    image.draft("RGB", (resolution, resolution))  # a large JPEG is decoded at a half, a quarter or an eighth
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):
        raise BadRecord("not_8_bit")
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright)
    return ImageOps.fit(upright.convert("RGB"), (resolution, resolution), Image.Resampling.LANCZOS)
