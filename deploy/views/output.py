"""Replaces standard output and error by streams that never end a run: a closed pipe or a full disk costs only lines.

All lines that a command prints pass through these streams: those of our views, rich, tyro, Ray and Python itself.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast


class Output:
    """A text stream that drops the lines it cannot write, and shows "?" for characters that its encoding lacks."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._loss = ""

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            return self.write(text.encode(encoding, "replace").decode(encoding))
        except OSError as error:
            self._note(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._note(error)

    def loss(self) -> str:
        """Return the system's reason for lost lines; "" if none was lost, or if the reader closed the pipe."""
        self.flush()
        return self._loss

    def settle(self) -> None:
        """Drop lines that are still unwritten: Python would try them again at exit, and fail with its own exit code."""
        try:
            self._stream.flush()
        except OSError:
            os.dup2(_nowhere(), self._stream.fileno())

    def _note(self, error: OSError) -> None:
        if error.errno != errno.EPIPE:
            self._loss = error.strerror or type(error).__name__

    def __getattr__(self, name: str) -> Any:
        """Return all other attributes of the stream, such as ``isatty``."""
        return getattr(self._stream, name)


@contextmanager
def tolerant() -> Iterator[Output]:
    """Make ``sys.stdout`` and ``sys.stderr`` an `Output` each during the block; gives the first."""
    before = sys.stdout, sys.stderr
    out, err = (Output(stream or os.fdopen(_nowhere(), "w")) for stream in before)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield out
    finally:
        sys.stdout, sys.stderr = before
        out.settle()
        err.settle()


def _nowhere() -> int:
    return os.open(os.devnull, os.O_WRONLY)
