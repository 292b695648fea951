"""Pairs from a folder: pictures named in a metadata table, or each with a .txt file of the same name beside it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from drover.common.errors import ConfigError
from drover.learner.files.pairs import ShuffledPairs
from drover.learner.files.pictures import MAX_BYTES, SUFFIXES
from drover.learner.files.records import BadRecord, clean, count_text
from drover.learner.files.tables import read_columns

TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # as Hugging Face's imagefolder
FILE_NAME = "file_name"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFolder:
    """Pictures (.jpg, .jpeg, .png, .webp) below a folder, cut to ``resolution`` squares.

    With a ``metadata.jsonl``, ``.csv`` or ``.parquet`` in the folder, its columns ``file_name`` and ``caption`` (a
    column's name) say what belongs together; without one, each picture has a UTF-8 ``.txt`` beside it.
    """

    folder: Path
    resolution: int
    caption: str = "text"

    def __post_init__(self) -> None:
        if self.resolution < 1:
            raise ConfigError(f"resolution is a number of pixels, got {self.resolution}; give at least 1")

    def open(self, seed: int) -> ShuffledPairs:
        """Raises `ConfigError` for a folder that cannot be read or holds no picture with a caption."""
        if not self.folder.is_dir():
            raise ConfigError(f"there is no folder {self.folder}; give one that holds pictures with captions")
        tables = [self.folder / name for name in TABLES if (self.folder / name).is_file()]
        if len(tables) > 1:
            raise ConfigError(f"{self.folder} holds {' and '.join(table.name for table in tables)}; leave one of them")
        skipped: Counter[str] = Counter()
        captions = self._from_table(tables[0], skipped) if tables else self._from_names(skipped)
        if not captions:
            wanted = f"named in {tables[0].name}" if tables else "with a .txt beside it"
            raise ConfigError(f"{self.folder} holds no picture {wanted}{count_text(skipped)}; add some")
        return ShuffledPairs(FolderRecords(self.folder, captions), skipped, seed=seed, resolution=self.resolution)

    def _from_table(self, table: Path, skipped: Counter[str]) -> dict[str, str | None]:
        """Picture -> caption, in the table's order."""
        captions: dict[str, str | None] = {}
        for name, caption in read_columns(table, (FILE_NAME, self.caption), skipped):
            try:
                picture, text = _inside(clean(name)), clean(caption)
            except BadRecord as bad:
                skipped[bad.reason] += 1
                continue
            skipped["repeated"] += picture in captions
            captions.setdefault(picture, text)
        return captions

    def _from_names(self, skipped: Counter[str]) -> dict[str, str | None]:
        """Picture -> None, sorted: the caption is read with the picture."""
        found = sorted(path for path in self.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        captioned = [path for path in found if path.with_suffix(".txt").is_file()]
        skipped["no_caption"] += len(found) - len(captioned)
        return {path.relative_to(self.folder).as_posix(): None for path in captioned}


class FolderRecords:
    """`Records` over a folder. ``captions`` maps a picture's path in it to its caption; None: read the .txt beside."""

    def __init__(self, folder: Path, captions: dict[str, str | None]) -> None:
        self._folder, self._captions = folder, tuple(captions.items())

    def __len__(self) -> int:
        return len(self._captions)

    def read(self, index: int) -> tuple[bytes, str]:
        name, caption = self._captions[index]
        picture = self._folder / name
        if caption is None:
            caption = _caption_beside(picture)
        return _bytes(picture, "no_picture"), caption


def _inside(name: str) -> str:
    """The name, which must stay in the folder: tables come from elsewhere."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise BadRecord("outside_folder")
    return name


def _caption_beside(picture: Path) -> str:
    try:
        return clean(_bytes(picture.with_suffix(".txt"), "no_caption").decode())
    except UnicodeDecodeError:
        raise BadRecord("not_utf8") from None


def _bytes(path: Path, reason: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadRecord(reason) from error
    if len(data) > MAX_BYTES:
        raise BadRecord("too_large")
    return data
