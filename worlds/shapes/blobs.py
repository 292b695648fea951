"""Measure masks and shares of a 32x32 picture: moments, overlap, connected blobs. Knows no colours.

A blob is one big integer, a bit per pixel, so that a flood fill grows by all pixels at once.
"""

import numpy as np

from drover.worlds.shapes.scenes import CANVAS

_CENTRES = np.arange(CANVAS, dtype=np.float32) + 0.5
_ROW = CANVAS + 1  # one empty column between rows, so that a shift never joins two rows


def moments(coverage: np.ndarray) -> tuple[float, float, float]:
    """Centre of mass (x, y) in pixels and area in pixels of shares [32, 32]."""
    area = float(coverage.sum())
    x, y = float(coverage.sum(0) @ _CENTRES) / area, float(coverage.sum(1) @ _CENTRES) / area
    return x, y, area


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two [32, 32] shares of coverage."""
    return float(np.minimum(first, second).sum() / np.maximum(first, second).sum())


def without_rim(mask: np.ndarray) -> np.ndarray:
    """Drop pixels with a neighbour outside the mask, because a coloured edge can look like one pixel of skin."""
    inner = np.zeros_like(mask)
    inner[1:-1, 1:-1] = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return inner


def blobs(mask: np.ndarray, smallest: int) -> list[int]:
    """The four-connected components of a [32, 32] mask with at least `smallest` pixels."""
    padded = np.zeros((CANVAS, _ROW), bool)
    padded[:, :CANVAS] = mask
    remaining = int.from_bytes(np.packbits(padded, bitorder="little").tobytes(), "little")
    found = []
    while remaining.bit_count() >= smallest:
        blob, reached = 0, remaining & -remaining
        while reached != blob:
            blob, reached = reached, grown(reached) & remaining
        remaining ^= blob
        if blob.bit_count() >= smallest:
            found.append(blob)
    return found


def grown(blob: int) -> int:
    """The blob and its neighbours; callers mask those in the empty column or off the canvas."""
    return blob | blob << 1 | blob >> 1 | blob << _ROW | blob >> _ROW


def unpack(blob: int) -> np.ndarray:
    """Bool [32, 32] of a blob's bits, without the empty column."""
    size = CANVAS * _ROW
    packed = np.frombuffer((blob & ((1 << size) - 1)).to_bytes(size // 8, "little"), np.uint8)
    return np.unpackbits(packed, bitorder="little").astype(bool).reshape(CANVAS, _ROW)[:, :CANVAS]
