"""What comes to a reward over HTTP, and what it answers; `rewards.http_reward` has the form. Trusts nothing that comes.

Whatever is wrong is a `Refused` before much memory is taken for it: sizes are looked at before anything is unpacked.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from drover.common.protocols import Scores

if TYPE_CHECKING:
    from PIL.Image import Image

# Brackets and commas of a body: parsing takes up to some 60 bytes for each. Prompts may hold some, pictures hold none.
MAX_STRUCTURE = 200_000
FIRST_BYTES = b"\x89PNG\r\n\x1a\n"
PACKED_TEXT = {b"zTXt", b"iTXt"}  # a few bytes of which may unpack to a MiB, each


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of what one request may bring, and of what all of them together may hold."""

    body_bytes: int = 32 << 20
    samples: int = 256
    prompt_characters: int = 4000
    pixels: int = 32 << 20  # of all pictures of a request
    side: int = 16_384  # of a picture
    held_bytes: int = 512 << 20  # bodies and pictures of all requests under way
    connections: int = 64
    request_s: float = 30.0  # for a whole request to come; then the connection is cut, however it drips
    idle_s: float = 60.0  # between two requests of a connection
    answer_s: float = 300.0  # what a request waits for its scores


class Refused(Exception):
    """A request that gets no scores: the HTTP status, and one line that says why."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


def parse_request(body: bytes, limits: Limits, hold: Callable[[int], None]) -> tuple[list[str], np.ndarray]:
    """N prompts and media [N, H, W, 3] uint8. Raises `Refused`. ``hold`` is told how many bytes the pictures will take."""
    prompts, images = _columns(body, limits)
    files = [_bytes(image, row) for row, image in enumerate(images)]
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
    media = np.empty((len(opened), height, width, 3), np.uint8)
    for row, image in enumerate(opened):
        media[row] = _pixels(image, row)
    return prompts, media


def _columns(body: bytes, limits: Limits) -> tuple[list[str], list[str]]:
    """The prompts, and the pictures as base64, as many of each."""
    if sum(body.count(sign) for sign in (b"[", b"{", b",")) > MAX_STRUCTURE:
        raise Refused(413, f"the body has more than {MAX_STRUCTURE} brackets and commas")
    try:
        request: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "the body is not JSON") from error
    if not isinstance(request, dict):
        raise Refused(400, 'the body must be an object {"prompts": [...], "images": [...]}')
    prompts, images = _words(request, "prompts"), _words(request, "images")
    if len(prompts) != len(images) or not prompts:
        raise Refused(
            400, f"prompts and images must be equally many and at least one, got {len(prompts)} and {len(images)}"
        )
    if len(prompts) > limits.samples:
        raise Refused(413, f"a request may bring {limits.samples} samples, got {len(prompts)}")
    if any(len(prompt) > limits.prompt_characters for prompt in prompts):
        raise Refused(413, f"a prompt may have {limits.prompt_characters} characters")
    if any("\ud800" <= sign <= "\udfff" for prompt in prompts if not prompt.isascii() for sign in prompt):
        raise Refused(400, "a prompt holds half a character")
    return prompts, images


def _words(request: dict[str, Any], name: str) -> list[str]:
    column = request.get(name)
    if not isinstance(column, list) or not all(isinstance(value, str) for value in column):
        raise Refused(400, f"{name} must be a list of strings")
    return column


def _bytes(image: str, row: int) -> bytes:
    try:
        return base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(400, f"images[{row}] is not base64") from error


def _opened(file: bytes, row: int) -> Image:
    """Its size is known, its pixels are not unpacked yet."""
    from PIL import Image

    if not file.startswith(FIRST_BYTES):
        raise Refused(400, f"images[{row}] is not a PNG file")
    if _chunks(file) & PACKED_TEXT:
        raise Refused(400, f"images[{row}] holds packed text, which is unpacked before anything is known; leave it out")
    try:
        image = Image.open(io.BytesIO(file), formats=["PNG"])
    except Exception as error:  # a foreign parser on foreign bytes: whatever it raises, the file is at fault
        raise Refused(400, f"images[{row}] is not a PNG file that can be read") from error
    if image.mode != "RGB":
        raise Refused(400, f"images[{row}] must be RGB with 8 bits, got mode {image.mode}")
    return image


def _chunks(file: bytes) -> set[bytes]:
    """Kinds of the PNG's parts, read from their heads alone."""
    found, at = set(), len(FIRST_BYTES)
    while at + 8 <= len(file):
        found.add(file[at + 4 : at + 8])
        at += 12 + int.from_bytes(file[at : at + 4], "big")
    return found


def _pixels(image: Image, row: int) -> np.ndarray:
    """[H, W, 3] uint8."""
    try:
        return np.asarray(image)
    except Exception as error:  # as above
        raise Refused(400, f"images[{row}] is a damaged PNG file") from error


def reply_body(scores: Scores) -> bytes:
    """JSON of the values, null where one does not count, and of the reasons."""
    reasons = list(scores.reasons or [""] * len(scores.values))
    values = [
        None if reason or not math.isfinite(value) else float(value)
        for value, reason in zip(scores.values, reasons, strict=True)
    ]
    return json.dumps({"values": values, "reasons": reasons}).encode()


def as_sets(prompts: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """(prompts, samples of each) where equal prompts follow each other in runs of one length, else every one alone."""
    starts = [row for row, prompt in enumerate(prompts) if row == 0 or prompts[row - 1] != prompt]
    lengths = {after - start for start, after in zip(starts, [*starts[1:], len(prompts)], strict=True)}
    if len(lengths) > 1:
        return tuple(prompts), 1
    return tuple(prompts[row] for row in starts), lengths.pop()
