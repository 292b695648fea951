"""Pack media of any kind into blobs and read them back, by the fields of their dataclass. Knows no Redis and no message.

Rows are cut into chunks, a blob each, so that a group may be larger than the limit of a blob.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from drover.common import tensors
from drover.common.errors import BlobTooLarge, CodecError, MediaError
from drover.common.media.kinds import kind_named
from drover.common.media.media import Media, arrays, facts, layout, made
from drover.common.protocols import BlobStore
from drover.common.types import MAX_BLOB_BYTES, MediaRef, TensorRef

Blob = tuple[str, list[memoryview]]
"""A blob's id and the parts of its content."""


def pack(media: Media, blob: str) -> tuple[list[Blob], MediaRef]:
    """The blobs of the media, and the reference to them. The first has the id ``blob``, the others this id and a number.

    The parts view the arrays' own memory where that is contiguous: store them before changing the arrays.
    Raises `MediaError` for an unknown kind, `BlobTooLarge` where a single sample exceeds the limit.
    """
    if kind_named(media.kind) is not type(media):
        raise MediaError(f"{type(media).__name__} says that its kind is {media.kind!r}, which is another's")
    blobs, refs = [], []
    for number, (first, last) in enumerate(_cuts(media)):
        name = f"{blob}.{number}" if number else blob
        parts, packed = tensors.pack(name, {each: array[first:last] for each, array in arrays(media).items()})
        blobs.append((name, parts))
        refs.append(packed)
    chunks = tuple(tuple(ref[name] for ref in refs) for name in arrays(media))
    return blobs, MediaRef(kind=media.kind, arrays=chunks, facts=tuple(map(float, facts(media).values())))


def read(blobs: BlobStore, ref: MediaRef, rows: slice | None = None) -> Media:
    """Fetch the media, or only ``rows`` of them (contiguous: step 1), transferring no other byte.

    Raises `BlobMissing` when a blob is gone, `CodecError` when its content does not fit the reference.
    """
    wanted = ref if rows is None else rows_of(ref, rows)
    try:
        kind = kind_named(ref.kind)
        names, types = layout(kind)
        found = [_joined([tensors.read(blobs, chunk).numpy() for chunk in chunks]) for chunks in wanted.arrays]
        return made(kind, dict(zip(names, found, strict=True)), dict(zip(types, ref.facts, strict=True)))
    except ValueError as error:
        raise CodecError(f"blob {ref.blobs[0]!r} holds no media of the kind {ref.kind!r}: {error}") from error


def rows_of(ref: MediaRef, rows: slice) -> MediaRef:
    """The reference to only those samples (contiguous: step 1)."""
    return replace(ref, arrays=tuple(tuple(_overlaps(chunks, rows)) for chunks in ref.arrays))


def _cuts(media: Media) -> Iterator[tuple[int, int]]:
    """(first, last) rows of each chunk; at least one chunk."""
    count, nbytes = len(media), sum(array.nbytes for array in arrays(media).values())
    row_bytes = nbytes // max(count, 1)
    if row_bytes > MAX_BLOB_BYTES:
        raise BlobTooLarge(f"a single sample takes {row_bytes >> 20} MiB, at most {MAX_BLOB_BYTES >> 20} travel")
    step = MAX_BLOB_BYTES // max(row_bytes, 1)
    return ((first, min(first + step, count)) for first in range(0, max(count, 1), step))


def _overlaps(chunks: Sequence[TensorRef], rows: slice) -> Iterator[TensorRef]:
    """The parts of the chunks that hold those rows; no rows of the first chunk where ``rows`` is empty."""
    start, stop, step = rows.indices(sum(chunk.shape[0] for chunk in chunks))
    if step != 1:
        raise ValueError(f"rows must be contiguous, got step {step}")
    if stop <= start:
        yield tensors.rows_of(chunks[0], slice(0, 0))
        return
    first = 0
    for chunk in chunks:
        last = first + chunk.shape[0]
        if first < stop and start < last:
            yield tensors.rows_of(chunk, slice(max(start, first) - first, min(stop, last) - first))
        first = last


def _joined(chunks: Sequence[np.ndarray]) -> np.ndarray:
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
