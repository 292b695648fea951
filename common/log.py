"""Log one line per event: ``key=value`` with a UTC timestamp, through stdlib logging. Passwords never reach a line.

Modules log with ``logging.getLogger(__name__)``; fields go in ``extra``: ``log.info("claimed", extra={"group": 17})``.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

_OWN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_URL_PASSWORD = re.compile(r"(\b(?:rediss?|valkeys?|unix)://[^\s:/@]*:)\S*(?=@)")
_QUERY_PASSWORD = re.compile(r"([?&]password=)[^&\s\"']+", re.IGNORECASE)
_PLAIN_VALUE = re.compile(r"[^\s\"=]+")


def mask_passwords(text: str) -> str:
    """Replace the password of every Redis URL in the text by ``***``. In doubt it masks too much."""
    return _QUERY_PASSWORD.sub(r"\1***", _URL_PASSWORD.sub(r"\1***", text))


class LineFormatter(logging.Formatter):
    """Formats a record as one line.

    ``2026-01-31T09:05:07.123Z level=INFO role=actor run=shapes logger=drover.actors.worker msg="claimed" group=17``.

    Tracebacks are one quoted field, so that a record is always one line. Masking happens here, on the finished line,
    because arguments, fields and tracebacks can all carry a URL.
    """

    def __init__(self, role: str, run: str) -> None:
        super().__init__()
        self._role = role
        self._run = run

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "level": record.levelname,
            "role": self._role,
            "run": self._run,
            "logger": record.name,
            "msg": record.getMessage(),
        }
        added = ((key, value) for key, value in vars(record).items() if key not in _OWN_ATTRIBUTES)
        fields.update(
            (key, value) for key, value in added if not key.startswith("_")
        )  # fields with an underscore are Ray's own
        if record.exc_info and record.exc_info[0] is not None:
            fields["exception"] = self.formatException(record.exc_info)
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return mask_passwords(" ".join([at, *(f"{key}={_quoted(value)}" for key, value in fields.items())]))


def configure(
    role: str, run: str, *, stream: TextIO | None = None, file: Path | None = None, level: str = "INFO"
) -> None:
    """Send this process's records to ``stream`` (standard error unless told otherwise) or, if given, to ``file``.

    Calling it again replaces its former handler and leaves other handlers alone.
    """
    handler: logging.Handler = logging.StreamHandler(stream or sys.stderr)
    if file is not None:
        handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(LineFormatter(role, run))
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old.formatter, LineFormatter)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level)


def _quoted(value: object) -> str:
    text = str(value)
    return text if _PLAIN_VALUE.fullmatch(text) else json.dumps(text, ensure_ascii=False)
