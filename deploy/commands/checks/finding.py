"""What a check found, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from drover.common.errors import DroverError

State = Literal["ok", "advice", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. Example: Finding("disk", "problem", "0.3 GB free in runs", "make room")."""

    check: str
    state: State
    found: str  # never a secret
    fix: str = ""  # what to do, unless all is well


def problem(check: str, error: DroverError) -> Finding:
    """An error of ours says what came, then what to do: "no Ray answers at X; correct RAY_ADDRESS"."""
    found, _, fix = str(error).partition("; ")
    return Finding(check, "problem", found, fix)


def guarded(check: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    """What ``look`` finds; an error that it raises is a finding too."""
    try:
        return look()
    except DroverError as error:
        return [problem(check, error)]
