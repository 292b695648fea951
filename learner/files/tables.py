"""Read columns of a table file row by row: text, JSONL, CSV, TSV or Parquet. Knows no prompt and no picture.

A damaged row is skipped and counted; a file that cannot be a table of that kind is a `ConfigError`. CSV and JSONL go
through the standard library, which can go on after a bad row where Arrow's readers give up the file.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from drover.common.errors import ConfigError
from drover.common.files import is_lfs_pointer
from drover.common.records import BadRecord, json_object

Row = Mapping[str, object]
"""Column name -> value; a column that the row lacks is not in it."""

ROWS_AT_ONCE = 16_384  # of a Parquet row group
NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns to read of each row: columns of text, and ``fields`` of any JSON type, by name or all others (None).

    The file must have the named columns.
    """

    texts: tuple[str, ...]
    fields: tuple[str, ...] | None = ()

    @property
    def named(self) -> tuple[str, ...]:
        return (*self.texts, *(self.fields or ()))

    def of(self, present: Sequence[str]) -> list[str]:
        """The columns to read of a file that has the columns ``present``."""
        return list(self.named) if self.fields is not None else [name for name in present if name]


@dataclass(slots=True)
class Unused:
    """Counts the unused parts of a file: ``rows`` by reason, and by column the values that cannot be a field."""

    rows: Counter[str] = field(default_factory=Counter)
    values: Counter[str] = field(default_factory=Counter)


def read_rows(path: Path, columns: Columns, unused: Unused) -> Iterator[Row]:
    """The rows of a file one by one, with ``columns`` alone. Raises `ConfigError`.

    A text file is one column of any name; values of CSV and TSV are texts. ``unused`` counts rows that cannot be
    read, and the values of Parquet columns that have no JSON type, which are not read.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"{path} has none of the endings {', '.join(_READERS)}; save it in one of these formats")
    with _readable(path):
        _check_begin(path)
        yield from reader(path, columns, unused)


def _text(path: Path, columns: Columns, unused: Unused) -> Iterator[Row]:
    name, *others = columns.named
    if others:
        raise _no_column(path, others, [name])
    for line in _lines(path):
        yield from ({name: part} for part in line.splitlines())


def _jsonl(path: Path, columns: Columns, unused: Unused) -> Iterator[Row]:
    seen: dict[str, None] = {}
    absent, is_empty = set(columns.named), True
    for line in _lines(path):
        if not line.strip():
            continue
        try:
            record = json_object(line.encode())
        except BadRecord as bad:
            unused.rows[bad.reason] += 1
            continue
        is_empty = False
        absent -= record.keys()
        if len(seen) < NAMES_SHOWN:
            seen |= dict.fromkeys(record)
        yield {name: record[name] for name in columns.of(list(record)) if name in record}
    if absent and not is_empty:
        raise _no_column(path, absent, seen)


def _csv(path: Path, columns: Columns, unused: Unused, *, delimiter: str) -> Iterator[Row]:
    # Strict, because a lenient reader takes the rest of the file after a stray quote for one long value.
    rows = _csv_rows(csv.reader(_lines(path), delimiter=delimiter, strict=True), unused.rows)
    header = next(rows, None)
    if header is None:
        return
    names = [name.strip() for name in header]
    wanted = {name: names.index(name) for name in _checked(path, columns, names)}
    for row in rows:
        if len(row) == len(names):
            yield {name: row[i] for name, i in wanted.items()}
        else:
            unused.rows["wrong columns"] += 1


def _csv_rows(reader: Iterator[list[str]], skipped: Counter[str]) -> Iterator[list[str]]:
    """The rows that are not blank lines. After a row that is no CSV, reading goes on at the next line."""
    while True:
        try:
            if row := next(reader):
                yield row
        except StopIteration:
            return
        except csv.Error:
            skipped["not CSV"] += 1


def _parquet(path: Path, columns: Columns, unused: Unused) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except pa.ArrowException as error:
        raise ConfigError(f"{path} is no whole Parquet file: {error}; copy or download it again") from error
    with file:
        wanted, others = _split(path, columns, file.schema_arrow)
        for number in range(file.num_row_groups):
            num_left = file.metadata.row_group(number).num_rows
            batches = file.iter_batches(ROWS_AT_ONCE, row_groups=[number], columns=wanted)
            try:
                for batch in batches:
                    values = zip(*(_values(batch.column(name)) for name in wanted), strict=True)
                    yield from (dict(zip(wanted, row, strict=True)) for row in values)
                    unused.values.update(dict.fromkeys(others, batch.num_rows))
                    num_left -= batch.num_rows
            except (pa.ArrowException, OSError):
                unused.rows["damaged"] += num_left


def _split(path: Path, columns: Columns, schema: Any) -> tuple[list[str], list[str]]:
    """(columns to read, columns without a JSON type). Raises `ConfigError` where a column of text holds another type."""
    names = _checked(path, columns, schema.names)
    wanted = [name for name in names if _is_json(schema.field(name).type)]
    for name in columns.texts:
        kind = schema.field(name).type
        if name not in wanted or not _is_text(kind):
            raise ConfigError(f"column {name!r} of {path} holds {kind}, not text; name a column of text")
    return wanted, [name for name in names if name not in wanted]


def _is_json(kind: Any) -> bool:
    """Whether the values are JSON scalars or lists of them."""
    import pyarrow.types as kinds

    if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        kind = kind.value_type
    others = (kinds.is_boolean, kinds.is_integer, kinds.is_floating, kinds.is_null)
    return _is_text(kind) or any(is_kind(kind) for is_kind in others)


def _is_text(kind: Any) -> bool:
    import pyarrow.types as kinds

    text = kind.value_type if kinds.is_dictionary(kind) else kind
    return kinds.is_string(text) or kinds.is_large_string(text) or kinds.is_string_view(text)


def _values(column: Any) -> list[object]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:  # Parquet writers do not check their strings; one bad value must not cost the batch
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return b""


def _checked(path: Path, columns: Columns, present: Sequence[str]) -> list[str]:
    """The columns to read. Raises `ConfigError` for a column that is missing, or is there twice."""
    if absent := set(columns.named).difference(present):
        raise _no_column(path, absent, present)
    wanted = columns.of(present)
    for name in wanted:
        if (number := present.count(name)) > 1:
            raise ConfigError(f"{path} has {number} columns named {name!r}; rename all but one")
    return wanted


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, with their ends. A byte order mark is left out."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            try:
                text = line.decode("utf-8" if offset else "utf-8-sig")
            except UnicodeDecodeError as error:
                at = offset + error.start
                raise ConfigError(f"{path} is not UTF-8 at byte {at}; save it as UTF-8 text") from error
            yield text
            offset += len(line)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {path}; give one that exists") from error
    except OSError as error:
        raise ConfigError(f"the file {path} cannot be read: {error.strerror or error}") from error


def _check_begin(path: Path) -> None:
    """Raise `ConfigError` for a file whose first bytes do not fit the kind of table that its suffix names."""
    with path.open("rb") as file:
        begin = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    suffix = path.suffix.lower()
    if is_lfs_pointer(begin):
        raise ConfigError(f"{path} is a git LFS pointer, not the file itself; fetch it with git lfs pull")
    if suffix != ".parquet":
        for mark, sentence in _MARKS.items():
            if begin.startswith(mark):
                raise ConfigError(f"{path} holds {sentence}")
    if suffix == ".jsonl" and begin.startswith(b"["):
        raise ConfigError(f"{path} holds one JSON list; write each of its objects on a line of its own")
    if suffix == ".txt" and _is_object(begin.partition(b"\n")[0]):
        raise ConfigError(f"{path} holds JSON objects, not texts; call it {path.stem}.jsonl")


_MARKS = {  # the first bytes of files of other kinds
    b"PAR1": "Parquet; call it .parquet",
    b"PK\x03\x04": "a zip archive; unpack it, or save the spreadsheet as CSV",
    b"\x1f\x8b": "gzip data; unpack it",
    b"<!DOCTYPE html": "a web page; download the file itself",
    b"<!doctype html": "a web page; download the file itself",
    b"<html": "a web page; download the file itself",
}


def _is_object(line: bytes) -> bool:
    try:
        return bool(json_object(line))
    except BadRecord:
        return False


def _no_column(path: Path, absent: Iterable[str], present: Iterable[str]) -> ConfigError:
    names = list(present)
    shown = ", ".join(map(repr, names[:NAMES_SHOWN])) + (", ..." if len(names) > NAMES_SHOWN else "")
    wanted = " and ".join(map(repr, sorted(absent)))
    return ConfigError(f"{path} has no column {wanted}; its columns are {shown}")


_READERS: dict[str, Callable[[Path, Columns, Unused], Iterator[Row]]] = {
    ".txt": _text,
    ".jsonl": _jsonl,
    ".csv": partial(_csv, delimiter=","),
    ".tsv": partial(_csv, delimiter="\t"),
    ".parquet": _parquet,
}
