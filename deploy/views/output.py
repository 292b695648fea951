"""Standard output and error that never end a run: a reader that goes away or a full disk costs lines, no more.

Every line that a command writes for people passes here: those of our views, of rich, tyro and Ray, and of Python itself.
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
        """Why lines were lost, as the system says it; "" where none was, or where the reader went away and wants none."""
        self.flush()
        return self._loss

    def settle(self) -> None:
        """Give up lines that are still unwritten: Python would try them again at exit, and fail with a code of its own."""
        try:
            self._stream.flush()
        except OSError:
            os.dup2(_nowhere(), self._stream.fileno())

    def _note(self, error: OSError) -> None:
        if error.errno != errno.EPIPE:
            self._loss = error.strerror or type(error).__name__

    def __getattr__(self, name: str) -> Any:
        """Every other attribute is the stream's own, such as ``isatty``."""
        return getattr(self._stream, name)


@contextmanager
def tolerant() -> Iterator[Output]:
    """Within the block ``sys.stdout``, which is given, and ``sys.stderr`` are `Output`s."""
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
