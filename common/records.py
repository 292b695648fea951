"""Read records of user files: texts, captions, JSON. A bad record is skipped and counted by reason; it never stops a run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

MAX_BYTES = 64 << 20  # of one file
MAX_CHARACTERS = 4096  # of one text; the longest text encoder in use reads some 500 tokens
BYTE_ORDER_MARK = "\ufeff"


class BadRecord(Exception):
    """A record cannot be used. ``reason`` is one of a few phrases, such as "blank" or "not JSON"."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def clean(value: object) -> str:
    """The prose of a prompt or caption: every run of white space is one blank, none at its ends. Raises `BadRecord`.

    Names of files and columns are no prose: their white space counts.
    """
    text = " ".join(a_text(value).replace(BYTE_ORDER_MARK, "").split())
    if not text:
        raise BadRecord("blank")
    if len(text) > MAX_CHARACTERS:
        raise BadRecord("too long")
    return text


def a_text(value: object) -> str:
    """Return the value if it is a text that UTF-8 can encode. Raises `BadRecord` otherwise."""
    if value is None:
        raise BadRecord("missing")
    if not isinstance(value, str):
        raise BadRecord("not text")
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        raise BadRecord("not UTF-8") from None
    return value


def file_bytes(path: Path, absent: str) -> bytes:
    """The content of a file of at most `MAX_BYTES`. Raises `BadRecord`: ``absent`` for a file that cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # a ValueError of names that no file can have
        raise BadRecord(absent) from error
    if len(data) > MAX_BYTES:
        raise BadRecord("too large")
    return data


def decoded(data: bytes) -> str:
    """The text of a UTF-8 file, without the byte order mark that some editors put first. Raises `BadRecord`."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadRecord("not UTF-8") from None


def json_object(data: bytes) -> dict[str, Any]:
    """The JSON object of a file or line. Raises `BadRecord`, also for NaN and Infinity, which Python would read."""
    text = decoded(data)
    if not text.strip():
        raise BadRecord("empty")
    try:
        record = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise BadRecord("not JSON") from None
    if not isinstance(record, dict):
        raise BadRecord("not an object")
    return record


def count_text(skipped: Mapping[str, int]) -> str:
    """`` (skipped: 3 blank, 1 not JSON)`` for the end of a sentence, the most frequent first; "" if none was skipped."""
    counts = counted(skipped)
    return f" (skipped: {counts})" if counts else ""


def counted(skipped: Mapping[str, int]) -> str:
    """``3 blank, 1 not JSON``: the most frequent reason first; "" if none was skipped."""
    return ", ".join(f"{number} {reason}" for reason, number in Counter(skipped).most_common() if number)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)
