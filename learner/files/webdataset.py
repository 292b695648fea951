"""Read pairs from WebDataset tars: the files of a sample share their name up to its first dot and follow each other.

The positions of all files are listed once, from the headers alone, and every pair is then one seek away: a run can start
from any step at the same cost. The format is that of the webdataset package, which groups files alike but is not used to read
them: version 1.0 reads a tar as a stream, so that step n would cost all bytes before it, and takes a damaged header for the
end of a shard without an error; the index of version 0.2 (``wids``) is a pickle, or cuts names at 100 bytes.
"""

from __future__ import annotations

import tarfile
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np

from drover.common.errors import ConfigError
from drover.common.files import is_lfs_pointer
from drover.common.picture_files import SUFFIXES
from drover.common.records import MAX_BYTES, BadRecord, clean, count_text, decoded, json_object
from drover.learner.files.pairs import ShuffledPairs


@dataclass(frozen=True, slots=True, kw_only=True)
class WebDataset:
    """One uncompressed tar, or all ``*.tar`` of a folder, with pictures cut to ``resolution`` squares.

    A sample is a picture (jpg, jpeg, png, webp) and a caption: its ``txt``, else the field ``caption`` of its ``json``.
    """

    path: Path
    resolution: int
    caption: str = "caption"

    def __post_init__(self) -> None:
        if self.resolution < 1:
            raise ConfigError(f"resolution is a number of pixels, got {self.resolution}; give at least 1")

    def open(self, seed: int) -> ShuffledPairs:
        """The pairs. Raises `ConfigError` when there is no tar, or no sample in any tar."""
        shards = sorted(self.path.glob("*.tar")) if self.path.is_dir() else [self.path]
        if not shards or not all(shard.is_file() for shard in shards):
            raise ConfigError(f"there is no tar at {self.path}; give an uncompressed .tar or a folder of some")
        index = TarIndex()
        for number, shard in enumerate(shards):
            index.add(number, shard)
        records = TarRecords(shards, index.table, self.caption)
        if not len(records):
            raise ConfigError(
                f"{self.path} holds no picture with a caption{count_text(index.skipped)}; "
                "a sample is for example 0001.jpg followed by 0001.txt, in an uncompressed tar"
            )
        return ShuffledPairs(records, index.skipped, seed=seed, resolution=self.resolution)


@dataclass(slots=True)
class TarIndex:
    """The position of every sample. ``skipped`` counts samples without a picture or a caption, and damaged shards."""

    skipped: Counter[str] = field(default_factory=Counter)
    _numbers: array[int] = field(default_factory=lambda: array("q"))

    @property
    def table(self) -> np.ndarray:
        """[N, 6] int64: shard; offset and size of the picture, of the caption; whether the caption is JSON."""
        return np.frombuffer(self._numbers, np.int64).reshape(-1, 6) if self._numbers else np.empty((0, 6), np.int64)

    def add(self, number: int, shard: Path) -> None:
        """Add the samples of one shard; of a damaged shard, the samples before the damage."""
        members = groupby(self._members(shard), key=lambda member: _split(member[0])[0])
        for _, sample in members:
            parts = {_split(name)[1]: (offset, size) for name, offset, size in sample}
            picture = next((parts[suffix] for suffix in SUFFIXES if suffix in parts), None)
            caption = parts.get(".txt") or parts.get(".json")
            if picture is None or caption is None:
                self.skipped["no picture" if picture is None else "no caption"] += 1
                continue
            self._numbers.extend((number, *picture, *caption, ".txt" not in parts))

    def _members(self, shard: Path) -> Iterator[tuple[str, int, int]]:
        """(name, offset, size) of every plain file, until the end or the first damage."""
        try:
            if is_lfs_pointer(_begin(shard)):
                self.skipped["git LFS pointer"] += 1
                return
            with tarfile.open(shard, "r:") as tar:
                for member in tar:
                    if member.isreg() and not Path(member.name).name.startswith((".", "__")):
                        yield member.name, member.offset_data, member.size
                self._check_end(tar)
        except (tarfile.TarError, OSError, ValueError):
            self.skipped["damaged shard"] += 1

    def _check_end(self, tar: tarfile.TarFile) -> None:
        """Tell a damaged header, which tarfile takes for the end, from the real end: a block of zeros, or no more bytes."""
        assert tar.fileobj is not None
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError("damaged header")


class TarRecords:
    """`Records` over shards and the table of `TarIndex`. A shard is opened for each read, so their number is not limited."""

    def __init__(self, shards: list[Path], table: np.ndarray, caption: str) -> None:
        self._shards, self._table, self._caption = shards, table, caption

    def __len__(self) -> int:
        return len(self._table)

    def read(self, index: int) -> tuple[bytes, str]:
        shard, offset, size, caption_offset, caption_size, is_json = map(int, self._table[index])
        if max(size, caption_size) > MAX_BYTES:
            raise BadRecord("too large")
        try:
            with self._shards[shard].open("rb") as file:
                file.seek(caption_offset)
                caption = file.read(caption_size)
                file.seek(offset)
                picture = file.read(size)
        except OSError as error:
            raise BadRecord("unreadable shard") from error
        return picture, self._clean(caption, is_json=bool(is_json))

    def _clean(self, caption: bytes, *, is_json: bool) -> str:
        return clean(json_object(caption).get(self._caption) if is_json else decoded(caption))


def _begin(shard: Path) -> bytes:
    with shard.open("rb") as file:
        return file.read(tarfile.BLOCKSIZE)


def _split(name: str) -> tuple[str, str]:
    """("folder/key", ".suffix") at the first dot of the last part, the suffix in lower case."""
    folder, slash, last = name.rpartition("/")
    key, dot, suffix = last.partition(".")
    return f"{folder}{slash}{key}", f"{dot}{suffix.lower()}"
