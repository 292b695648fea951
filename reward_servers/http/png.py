"""Write pictures as base64 PNG files for a request, and read them from one. Trusts no file: sizes are checked first."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from drover.common.media.pictures import Pictures
from drover.reward_servers.http.limits import Limits, Refused

if TYPE_CHECKING:
    from PIL.Image import Image

FIRST_BYTES = b"\x89PNG\r\n\x1a\n"
PACKED_TEXT = {b"zTXt", b"iTXt"}  # refused, as a few of their bytes may unpack to a MiB each


def to_png(picture: np.ndarray) -> str:
    """A picture [H, W, 3] uint8 as a PNG file in base64."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


def from_png(images: Sequence[str], limits: Limits, hold: Callable[[int], None]) -> Pictures:
    """The pictures in the files, of which there is at least one. Raises `Refused`. ``hold`` gets their size in bytes first."""
    files = [from_base64(image, f"images[{row}]") for row, image in enumerate(images)]
    opened = [_opened(file, row) for row, file in enumerate(files)]
    sizes = {image.size for image in opened}
    if len(sizes) != 1:
        raise Refused(400, f"pictures of one request must be equally large, got {sorted(sizes)[:4]}")
    width, height = opened[0].size
    if max(width, height) > limits.side:
        raise Refused(413, f"a side of a picture may have {limits.side} pixels, got {width} x {height}")
    if width * height * len(opened) > limits.pixels:
        raise Refused(413, f"{len(opened)} pictures of {width} x {height} pass {limits.pixels} pixels; send fewer")
    hold(3 * width * height * len(opened))
    pixels = np.empty((len(opened), height, width, 3), np.uint8)
    for row, image in enumerate(opened):
        pixels[row] = _pixels(image, row)
    return Pictures(pixels)


def from_base64(text: str, name: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(400, f"{name} is not base64") from error


def _opened(file: bytes, row: int) -> Image:
    """Open a PNG file and check its size, without unpacking its pixels."""
    from PIL import Image

    if not file.startswith(FIRST_BYTES):
        raise Refused(400, f"images[{row}] is not a PNG file")
    if _chunks(file) & PACKED_TEXT:
        raise Refused(400, f"images[{row}] holds packed text, which is unpacked before anything is known; leave it out")
    try:
        image = Image.open(io.BytesIO(file), formats=["PNG"])
    except Exception as error:  # the parser raises many errors for bad files, and all mean the same
        raise Refused(400, f"images[{row}] is not a PNG file that can be read") from error
    if image.mode != "RGB":
        raise Refused(400, f"images[{row}] must be RGB with 8 bits, got mode {image.mode}")
    return image


def _chunks(file: bytes) -> set[bytes]:
    """The kinds of the PNG's chunks, read from their heads alone."""
    found, at = set(), len(FIRST_BYTES)
    while at + 8 <= len(file):
        found.add(file[at + 4 : at + 8])
        at += 12 + int.from_bytes(file[at : at + 4], "big")
    return found


def _pixels(image: Image, row: int) -> np.ndarray:
    """[H, W, 3] uint8 pixels of an opened picture."""
    try:
        return np.asarray(image)
    except Exception as error:  # as above
        raise Refused(400, f"images[{row}] is a damaged PNG file") from error
