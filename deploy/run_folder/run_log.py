"""Writes ``runs/NAME/run.log``, which explains failures: phases, events, warnings, and errors with their tracebacks."""

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
LAST_LINES = 30  # lines kept of the log of a worker that died
log = logging.getLogger(__name__)
_COLOURS = re.compile(r"\x1b\[[\d;]*m")


@contextmanager
def kept(folder: Path) -> Iterator[None]:
    """Append this process's log records to run.log during the block: drover's from INFO on, those of libraries from WARNING."""
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


def keep_end(worker: str, path: str) -> None:
    """Log the last lines of a worker's own log if the file is on this machine, else its path."""
    lines: deque[str] = deque(maxlen=LAST_LINES)
    with suppress(OSError), Path(path).open(encoding="utf-8", errors="replace") as file:
        lines.extend(f"\n    {line.rstrip()}" for line in file)
    log.warning("%s wrote to %s last:%s", worker, path or "a log that is not known", "".join(lines))


class Words(io.TextIOBase):
    """A stream that logs its lines. It replaces standard output, so that prints of libraries do not disturb the view."""

    def write(self, text: str) -> int:
        if text.strip():
            log.info("%s", _COLOURS.sub("", text.strip()))
        return len(text)


class _Handler(logging.FileHandler):
    """Drops the lines that it cannot write. On a full disk, the files that a run needs raise the error."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # from opening the file
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None: ...


class _Formatter(logging.Formatter):
    """Masks passwords, and keeps the line breaks of tracebacks, for people read this file."""

    def format(self, record: logging.LogRecord) -> str:
        return mask_passwords(super().format(record))
