"""Read the distinct prompts of a file, with their fields, and split off a held-out part that stays held out. Issues no order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from drover.common import seeds
from drover.common.errors import ConfigError
from drover.common.prompts import MAX_FIELDS_BYTES, Field, Prompt, fields_text, is_field
from drover.common.records import BadRecord, clean, count_text, counted
from drover.learner.files.tables import Columns, Row, Unused, read_rows


class Told(tuple[str, ...]):
    """Prompts of a file. ``told`` is a sentence about the file's rows, which training prints at its start."""

    told: str

    def __new__(cls, prompts: Iterable[str], told: str = "") -> Told:
        made = super().__new__(cls, prompts)
        made.told = told
        return made


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of one file, split. ``str`` gives a sentence that counts its used and skipped rows.

    Example: ``Prompts("p.jsonl", train=(Prompt("a cat", {"count": 1}),), heldout=(), skipped={"blank": 1}, left_out={})``.
    ``train`` is in the file's order; ``heldout`` is in the order of hashes, so any first part of it is a fair sample. Both hold
    plain texts where no prompt of the file has a field.
    """

    file: str
    train: tuple[str, ...]
    heldout: tuple[str, ...]
    skipped: Mapping[str, int]  # reason -> rows
    left_out: Mapping[str, int]  # column -> number of values that cannot be a field of a prompt

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields that every prompt has, in the file's order."""
        found = [prompt.fields if isinstance(prompt, Prompt) else {} for prompt in self.train + self.heldout]
        common = set(found[0]).intersection(*found)
        return tuple(name for name in found[0] if name in common)

    def __str__(self) -> str:
        train, heldout = len(self.train), len(self.heldout)
        told = [f"{self.file}: {train + heldout} prompts, {train} to train on, {heldout} held out"]
        if skipped := sum(self.skipped.values()):
            told.append(f"{skipped} skipped ({counted(self.skipped)})")
        if self.fields:
            told.append(f"fields: {', '.join(self.fields)}")
        if self.left_out:
            columns = ", ".join(f"{name} of {number}" for name, number in self.left_out.items())
            told.append(f"values that can be no field: {columns}")
        return "; ".join(told)


def read_prompts(
    path: Path,
    column: str = "prompt",
    *,
    fields: Sequence[str] | None = None,
    heldout: float = 0.0,
    seed: int = 0,
    limit: int | None = None,
) -> Prompts:
    """The distinct prompts of a .txt (one a line), .jsonl, .csv, .tsv or .parquet file, split. Raises `ConfigError`.

    The other columns become the prompts' fields: all of them (None), or those named in ``fields``. Two rows of one text with
    different fields are two prompts. A value is left out and counted if it is no text, finite number, truth value, null or
    list of these, or if it exceeds `MAX_FIELDS_BYTES` with the values before it. CSV has no types: its fields are texts.

    ``heldout`` is a share in [0, 1), not a number: the side of a prompt depends on its text, the seed and the share
    alone, so rows that are added or removed move no other prompt across, which an exact number could not promise. Two
    prompts that differ in fields, white space or upper case fall on one side. Only the first ``limit`` distinct prompts are
    read. Only the distinct prompts are kept in memory.
    """
    if not 0 <= heldout < 1:
        raise ConfigError(f"heldout is the share of the prompts that is held out, got {heldout}; give 0 up to below 1")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is a number of prompts, got {limit}; give at least 1 or None")
    unused = Unused()
    wanted = Columns((column,), None if fields is None else tuple(fields))
    prompts = _distinct(path, wanted, limit, unused)
    if not prompts:
        todo = "write one per line" if path.suffix.lower() == ".txt" else f"fill its column {column!r}"
        raise ConfigError(f"the prompt file {path} holds no prompt; {todo}{count_text(unused.rows)}")
    train, apart = _split(prompts, heldout, seed)
    if heldout and not (train and apart):
        raise ConfigError(
            f"a held-out share of {heldout} splits the {len(prompts)} prompts of {path} into {len(train)} to train on "
            f"and {len(apart)} held out; choose a share that leaves both"
        )
    found = Prompts(path.name, train, apart, unused.rows, unused.values)
    return replace(found, train=Told(train, str(found)))


def _distinct(path: Path, columns: Columns, limit: int | None, unused: Unused) -> Sequence[str]:
    prompts: dict[tuple[str, ...], Prompt] = {}
    for row in read_rows(path, columns, unused):
        try:
            text = clean(row.get(columns.texts[0]))
        except BadRecord as bad:
            unused.rows[bad.reason] += 1
            continue
        prompt = Prompt(text, _fields(row, columns, unused))
        key = (text, *fields_text([prompt]))
        if key in prompts:
            unused.rows["repeated"] += 1
            continue
        prompts[key] = prompt
        if len(prompts) == limit:
            break
    has_fields = any(prompt.fields for prompt in prompts.values())
    return list(prompts.values()) if has_fields else [str(prompt) for prompt in prompts.values()]


def _fields(row: Row, columns: Columns, unused: Unused) -> dict[str, Field]:
    """The fields of the row's prompt, in the order of the columns."""
    fields: dict[str, Field] = {}
    room = MAX_FIELDS_BYTES
    for name, value in row.items():
        if name in columns.texts:
            continue
        if is_field(value) and (size := len(json.dumps({name: value}))) <= room:
            fields[name] = value
            room -= size
        else:
            unused.values[name] += 1
    return fields


def _split(prompts: Sequence[str], heldout: float, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(prompts to train on, held-out prompts)."""
    if not heldout:
        return tuple(prompts), ()
    places = {prompt: _place(prompt, seed) for prompt in prompts}
    apart = sorted((prompt for prompt in prompts if places[prompt] < heldout), key=places.__getitem__)
    return tuple(prompt for prompt in prompts if places[prompt] >= heldout), tuple(apart)


def _place(prompt: str, seed: int) -> float:
    """The prompt's hash in [0, 1): uniform over prompts, equal for two that differ in upper case only."""
    return seeds.derive(seed, "held-out prompt", prompt.casefold()) / 2**63
