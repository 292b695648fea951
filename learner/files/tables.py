"""Columns of a table file, streamed row by row: text, JSONL, CSV, TSV or Parquet. Knows no prompt and no picture.

A damaged row is skipped and counted; a file that cannot be a table of that kind is a `ConfigError`. CSV and JSONL go
through the standard library, which can go on after a bad row where Arrow's readers give up the file.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from drover.common.errors import ConfigError

Row = tuple[object, ...]
ROWS_AT_ONCE = 16_384  # of a Parquet row group
NAMES_SHOWN = 20


def read_columns(path: Path, columns: Sequence[str], skipped: Counter[str]) -> Iterator[Row]:
    """The values of ``columns``, row by row; None where a row has none. ``skipped`` counts rows that cannot be read.

    A text file is one column, whatever its name. Raises `ConfigError`.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"{path} has none of the endings {', '.join(_READERS)}; save it in one of these formats")
    with _readable(path):
        yield from reader(path, columns, skipped)


def _text(path: Path, columns: Sequence[str], skipped: Counter[str]) -> Iterator[Row]:
    for line in _lines(path):
        yield from ((part,) for part in line.splitlines())


def _jsonl(path: Path, columns: Sequence[str], skipped: Counter[str]) -> Iterator[Row]:
    seen: dict[str, None] = {}
    absent, is_empty = set(columns), True
    for line in _lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            skipped["not_json"] += 1
            continue
        if not isinstance(record, dict):
            skipped["not_an_object"] += 1
            continue
        is_empty = False
        absent -= record.keys()
        if len(seen) < NAMES_SHOWN:
            seen |= dict.fromkeys(record)
        yield tuple(record.get(name) for name in columns)
    if absent and not is_empty:
        raise _no_column(path, absent, seen)


def _csv(path: Path, columns: Sequence[str], skipped: Counter[str], *, delimiter: str) -> Iterator[Row]:
    # Strict, as a lenient reader takes everything after a stray quote for one long value.
    rows = _csv_rows(csv.reader(_lines(path), delimiter=delimiter, strict=True), skipped)
    header = next(rows, None)
    if header is None:
        return
    names = [name.strip() for name in header]
    if absent := set(columns).difference(names):
        raise _no_column(path, absent, names)
    wanted = [names.index(name) for name in columns]
    for row in rows:
        if len(row) == len(names):
            yield tuple(row[i] for i in wanted)
        else:
            skipped["wrong_columns"] += 1


def _csv_rows(reader: Iterator[list[str]], skipped: Counter[str]) -> Iterator[list[str]]:
    """The rows that are not blank lines. After a row that is no CSV, reading goes on at the next line."""
    while True:
        try:
            if row := next(reader):
                yield row
        except StopIteration:
            return
        except csv.Error:
            skipped["not_csv"] += 1


def _parquet(path: Path, columns: Sequence[str], skipped: Counter[str]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{path} is no whole Parquet file: {error}; copy or download it again") from error
    with file:
        _check_text_columns(path, columns, file.schema_arrow)
        for number in range(file.num_row_groups):
            num_left = file.metadata.row_group(number).num_rows
            batches = file.iter_batches(ROWS_AT_ONCE, row_groups=[number], columns=list(columns))
            try:
                for batch in batches:
                    yield from zip(*(_values(batch.column(name)) for name in columns), strict=True)
                    num_left -= batch.num_rows
            except (pa.ArrowException, OSError):
                skipped["damaged"] += num_left


def _check_text_columns(path: Path, columns: Sequence[str], schema: Any) -> None:
    import pyarrow.types as kinds

    if absent := set(columns).difference(schema.names):
        raise _no_column(path, absent, schema.names)
    for name in columns:
        kind = schema.field(name).type
        text = kind.value_type if kinds.is_dictionary(kind) else kind
        if not (kinds.is_string(text) or kinds.is_large_string(text) or kinds.is_string_view(text)):
            raise ConfigError(f"column {name!r} of {path} holds {kind}, not text; name a column of text")


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


def _no_column(path: Path, absent: Iterable[str], present: Iterable[str]) -> ConfigError:
    names = list(present)
    shown = ", ".join(map(repr, names[:NAMES_SHOWN])) + (", ..." if len(names) > NAMES_SHOWN else "")
    wanted = " and ".join(map(repr, sorted(absent)))
    return ConfigError(f"{path} has no column {wanted}; its columns are {shown}")


_READERS: dict[str, Callable[[Path, Sequence[str], Counter[str]], Iterator[Row]]] = {
    ".txt": _text,
    ".jsonl": _jsonl,
    ".csv": partial(_csv, delimiter=","),
    ".tsv": partial(_csv, delimiter="\t"),
    ".parquet": _parquet,
}
