"""Small media of every kind, each sample different from the others."""

from __future__ import annotations

import numpy as np

from drover.common.media.blobs import pack
from drover.common.media.clips import Clips
from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.media.scenes import Scenes
from drover.common.media.sounds import Sounds
from drover.common.media.structures import Structures
from drover.common.protocols import BlobStore
from drover.common.types import MediaRef, TensorRef


def one_of_each(count: int, seed: int = 0) -> list[Media]:
    rng = np.random.default_rng(seed)
    return [
        Pictures(rng.integers(0, 256, (count, 8, 6, 3), dtype=np.uint8)),
        Clips(rng.integers(0, 256, (count, 5, 8, 6, 3), dtype=np.uint8), fps=7.5),
        Sounds(rng.uniform(-1, 1, (count, 2, 400)).astype(np.float32), rate=16_000),
        Scenes(rng.uniform(-20, 20, (count, 3, 10, 4)).astype(np.float32), step_s=0.5),
        Structures(rng.integers(0, 2, (count, 4, 5, 6), dtype=np.uint8), voxel_m=0.25),
    ]


def pictures_in(blob: str, *shape: int) -> MediaRef:
    """A reference to pictures [N, H, W, 3] of that shape."""
    return MediaRef(kind="picture", arrays=((TensorRef(blob=blob, dtype="uint8", shape=shape),),))


def stored(media: Media, blob: str, blobs: BlobStore) -> MediaRef:
    """Put the media into the store and return their reference."""
    packed, ref = pack(media, blob)
    for name, parts in packed:
        blobs.put(name, parts)
    return ref
