"""What a usable record is. A bad one is skipped and counted under one bounded word; it never stops a run."""

from __future__ import annotations

from collections.abc import Mapping

MAX_CHARACTERS = 4096  # of one text; the longest text encoder in use reads some 500 tokens


class BadRecord(Exception):
    """One record cannot be used. ``reason`` is one of a bounded set of words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def clean(value: object) -> str:
    """The text with every run of white space as one blank, none at its ends. Raises `BadRecord`."""
    if value is None:
        raise BadRecord("missing")
    if not isinstance(value, str):
        raise BadRecord("not_text")
    text = " ".join(value.split())
    if not text:
        raise BadRecord("blank")
    if len(text) > MAX_CHARACTERS:
        raise BadRecord("too_long")
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        raise BadRecord("not_utf8") from None
    return text


def count_text(skipped: Mapping[str, int]) -> str:
    """For the end of an error: `` (skipped: 3 blank, 1 not_json)``, or nothing."""
    counts = ", ".join(f"{number} {reason}" for reason, number in sorted(skipped.items()) if number)
    return f" (skipped: {counts})" if counts else ""
