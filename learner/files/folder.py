"""Read pairs from a folder: pictures named in a metadata table, or each with a .txt file of the same name beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from drover.common.errors import ConfigError
from drover.common.picture_files import SUFFIXES
from drover.common.records import BadRecord, a_text, clean, count_text, decoded, file_bytes
from drover.learner.files.pairs import ShuffledPairs
from drover.learner.files.tables import Columns, Unused, read_rows

TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # as Hugging Face's imagefolder
FILE_NAME = "file_name"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFolder:
    """Pictures (.jpg, .jpeg, .png, .webp) below a folder, cut to ``resolution`` squares.

    With a ``metadata.jsonl``, ``.csv`` or ``.parquet`` in the folder, its columns ``file_name`` and ``caption`` (a
    column's name) give each picture its caption; without one, each picture has a UTF-8 ``.txt`` beside it.
    """

    folder: Path
    resolution: int
    caption: str = "text"

    def __post_init__(self) -> None:
        if self.resolution < 1:
            raise ConfigError(f"resolution is a number of pixels, got {self.resolution}; give at least 1")

    def open(self, seed: int) -> ShuffledPairs:
        """The pairs. Raises `ConfigError` for a folder that cannot be read or holds no picture with a caption."""
        if not self.folder.is_dir():
            raise ConfigError(f"there is no folder {self.folder}; give one that holds pictures with captions")
        tables = [self.folder / name for name in TABLES if (self.folder / name).is_file()]
        if len(tables) > 1:
            raise ConfigError(f"{self.folder} holds {' and '.join(table.name for table in tables)}; leave one of them")
        unused = Unused()
        captions = self._from_table(tables[0], unused) if tables else self._from_names(unused)
        if not captions:
            wanted = f"named in {tables[0].name}" if tables else "with a .txt beside it"
            raise ConfigError(f"{self.folder} holds no picture {wanted}{count_text(unused.rows)}; add some")
        return ShuffledPairs(FolderRecords(self.folder, captions), unused.rows, seed=seed, resolution=self.resolution)

    def _from_table(self, table: Path, unused: Unused) -> dict[str, str | None]:
        """Picture file -> caption, in the table's order."""
        captions: dict[str, str | None] = {}
        for row in read_rows(table, Columns((FILE_NAME, self.caption)), unused):
            try:
                picture, text = _inside(a_text(row.get(FILE_NAME))), clean(row.get(self.caption))
            except BadRecord as bad:
                unused.rows[bad.reason] += 1
                continue
            unused.rows["repeated"] += picture in captions
            captions.setdefault(picture, text)
        return captions

    def _from_names(self, unused: Unused) -> dict[str, str | None]:
        """Picture file -> None, sorted: the caption is read with the picture."""
        found = sorted(path for path in self.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        captioned = [path for path in found if path.with_suffix(".txt").is_file()]
        unused.rows["no caption"] += len(found) - len(captioned)
        return {path.relative_to(self.folder).as_posix(): None for path in captioned}


class FolderRecords:
    """`Records` over a folder. ``captions`` maps a picture's path in it to its caption; None: read the .txt beside it."""

    def __init__(self, folder: Path, captions: dict[str, str | None]) -> None:
        self._folder, self._captions = folder, tuple(captions.items())

    def __len__(self) -> int:
        return len(self._captions)

    def read(self, index: int) -> tuple[bytes, str]:
        name, caption = self._captions[index]
        picture = self._folder / name
        if caption is None:
            caption = _caption_beside(picture)
        return file_bytes(picture, "no picture"), caption


def _inside(name: str) -> str:
    """Return the name unchanged if it points into the folder, as tables may be foreign. Raises `BadRecord` otherwise."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise BadRecord("outside the folder")
    if not name.strip():
        raise BadRecord("blank")
    return name


def _caption_beside(picture: Path) -> str:
    return clean(decoded(file_bytes(picture.with_suffix(".txt"), "no caption")))
