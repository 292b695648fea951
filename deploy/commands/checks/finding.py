"""The result of one check of `drover doctor`, with its fix."""

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
    fix: str = ""  # the edit or command that helps; "" if all is well


def problem(check: str, error: DroverError) -> Finding:
    """Split an error of ours into its finding and fix: "no Ray answers at X; correct RAY_ADDRESS"."""
    found, _, fix = str(error).partition("; ")
    return Finding(check, "problem", found, fix)


def guarded(check: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    """Return the findings of ``look``, or its error as a finding."""
    try:
        return look()
    except DroverError as error:
        return [problem(check, error)]
