"""The file that Ray sends a worker's standard error to, which Ray names after ids that only the process itself knows."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path


def own_log() -> str:
    """Path of this process's log; "" where its standard error goes to no file, or the system does not say."""
    with suppress(OSError, ValueError):
        path = os.readlink(f"/proc/self/fd/{sys.stderr.fileno()}")
        return path if Path(path).is_file() else ""
    return ""
