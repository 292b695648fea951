"""Batches of pictures with captions, in an order that is a pure function of (seed, step).

Axes: B pairs of a batch, H W picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol

import numpy as np

from drover.common import seeds
from drover.common.errors import ConfigError
from drover.common.media.pictures import Pictures
from drover.common.picture_files import square
from drover.common.protocols import FileBatch
from drover.common.records import BadRecord, count_text


class Records(Protocol):
    """Encoded pictures with captions, by index."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[bytes, str]:
        """(picture file, clean caption). Raises `BadRecord`."""


class ShuffledPairs:
    """Gives every record once per pass, each pass in its own order. A bad record is replaced by the next good one.

    The replacement depends on the files alone, not on earlier reads, so the batch stays a pure function of (seed, step)
    as long as the files stay the same.
    """

    def __init__(self, records: Records, unlisted: Mapping[str, int], *, seed: int, resolution: int) -> None:
        """``unlisted``: reason -> the number of files that are no record for that reason."""
        self._records, self._seed, self._resolution = records, seed, resolution
        self._unlisted = Counter(unlisted)
        self._bad: dict[int, str] = {}

    @property
    def skipped(self) -> Mapping[str, int]:
        return self._unlisted + Counter(self._bad.values())

    def batch(self, step: int, size: int) -> FileBatch:
        pairs = [self._pair(position) for position in range(step * size, (step + 1) * size)]
        return FileBatch(Pictures(np.stack([picture for picture, _ in pairs])), [caption for _, caption in pairs])

    def _pair(self, position: int) -> tuple[np.ndarray, str]:
        num_records = len(self._records)
        pass_number, first = divmod(position, num_records)
        order = _order(self._seed, pass_number, num_records)
        for offset in range(num_records):
            index = int(order[(first + offset) % num_records])
            if index in self._bad:
                continue
            try:
                picture, caption = self._records.read(index)
                return square(picture, self._resolution), caption
            except BadRecord as bad:
                self._bad[index] = bad.reason
        raise ConfigError(f"none of {num_records} pictures with captions can be used{count_text(self.skipped)}")


@lru_cache(maxsize=2)  # a batch may reach into the next pass
def _order(seed: int, pass_number: int, size: int) -> np.ndarray:
    import torch

    generator = torch.Generator().manual_seed(seeds.derive(seed, "pairs", pass_number))
    return torch.randperm(size, generator=generator).numpy()
