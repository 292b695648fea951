"""Decode users' picture files to pixels: one set of formats and limits for every reader. Takes bytes, opens no file."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from drover.common.files import is_lfs_pointer
from drover.common.records import MAX_BYTES, BadRecord

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
FORMATS = ("JPEG", "PNG", "WEBP")  # by content, not by name; Pillow's other decoders are not used
MAX_PIXELS = 64_000_000  # 192 MB once decoded


def square(data: bytes, resolution: int) -> np.ndarray:
    """[resolution, resolution, 3] uint8: the picture scaled to cover the square, its middle cut out.

    Raises `BadRecord` as `decode` does.
    """
    from PIL import Image, ImageOps

    image = decode(data, least=resolution)
    return np.asarray(ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS))


def decode(data: bytes, *, least: int | None = None) -> Image.Image:
    """The picture as RGB, upright and on white. Where sides of ``least`` pixels suffice, a large JPEG is decoded smaller.

    Raises `BadRecord`: "damaged", "too large", "not 8 bit" where 8 bits would clip the values, or "git LFS pointer".
    """
    from PIL import Image

    if len(data) > MAX_BYTES:
        raise BadRecord("too large")
    if is_lfs_pointer(data):
        raise BadRecord("git LFS pointer")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadRecord("too large")
            if least is not None:
                image.draft("RGB", (least, least))  # at a half, a quarter or an eighth
            return _rgb(image)
    except BadRecord:
        raise
    except Image.DecompressionBombError:
        raise BadRecord("too large") from None
    # Pillow passes on every error of its parsers of headers and EXIF: each of them means that this file is damaged.
    except Exception as error:
        raise BadRecord("damaged") from error


def _rgb(image: Image.Image) -> Image.Image:
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):
        raise BadRecord("not 8 bit")
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright)
    return upright.convert("RGB")
