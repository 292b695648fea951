"""``runs/NAME/run.log``, for people after a failure: phases, events, warnings, and errors with their tracebacks."""

from __future__ import annotations

import io
import logging
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from drover.common.log import mask_passwords

NAME = "run.log"
LAST_LINES = 30  # of the log of a worker that died
log = logging.getLogger(__name__)
_COLOURS = re.compile(r"\x1b\[[\d;]*m")


@contextmanager
def kept(folder: Path) -> Iterator[None]:
    """Append what this process logs during the block: warnings of anyone, and what drover says of the run."""
    handler = _Handler(folder / NAME, encoding="utf-8", delay=True)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
    root, ours = logging.getLogger(), logging.getLogger("drover")
    level = ours.level
    ours.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield
    except Exception:
        log.exception("the run failed")
        raise
    finally:
        root.removeHandler(handler)
        ours.setLevel(level)
        handler.close()


def last_lines(log: str) -> str:
    """The end of a worker's log, indented, if that lies on this machine; "" elsewhere."""
    with suppress(OSError), Path(log).open(encoding="utf-8", errors="replace") as file:
        return "".join(f"\n    {line.rstrip()}" for line in deque(file, LAST_LINES))
    return ""


class Words(io.TextIOBase):
    """A standard output whose lines go to the log: those that libraries print beside the view of a run."""

    def write(self, text: str) -> int:
        if text.strip():
            log.info("%s", _COLOURS.sub("", text.strip()))
        return len(text)


class _Handler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk is told by what must be written; here it would be told once a line."""


class _Formatter(logging.Formatter):
    """Tracebacks keep their lines, for people read this file."""

    def format(self, record: logging.LogRecord) -> str:
        return mask_passwords(super().format(record))
