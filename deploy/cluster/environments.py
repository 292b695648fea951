"""Requests the Python environment of a reward that cannot share drover's packages, explains failed builds, and removes it.

Ray clones the environment it runs from, installs the reward's packages over it, and keeps the result on the node until
that Ray ends: all processes of the reward share it, and so do later runs that join the same Ray. No secret goes into
the request, because Ray logs it.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from drover.common.errors import DroverError
from drover.common.protocols import NeedsPackages, Reward

BUILD_S = 1800  # for one attempt; gigabytes may have to be downloaded
MARK = "ERROR: "  # pip begins the lines with its reasons so
CLONER = "_clonevirtualenv.py"  # Ray's
GONE_S = 5.0  # how long a killed build may take to end


def packages_of(reward: Reward) -> tuple[str, ...]:
    """Return the pip requirements of the reward beyond drover's own packages."""
    return reward.packages if isinstance(reward, NeedsPackages) else ()


def runtime_env(packages: Sequence[str]) -> dict[str, Any]:
    """Return the options of a Ray actor whose process has these pip requirements; {} for none.

    pip's own check of the result is off, because it would fail over packages that the reward never imports.
    """
    if not packages:
        return {}
    pip = {"packages": list(packages), "pip_check": False}
    return {"runtime_env": {"pip": pip, "config": {"setup_timeout_seconds": BUILD_S}}}


def sweep(session: str | Path) -> None:
    """Remove the environments of a Ray that has ended, given the folder of its session: Ray itself leaves the gigabytes.

    Also kills unfinished builds, which go on after their Ray has ended.
    """
    folder = Path(session) / "runtime_resources" / "pip"
    gives_up_s = time.monotonic() + GONE_S
    while (builders := _builders(folder)) and time.monotonic() < gives_up_s:
        for builder in builders:
            with suppress(ProcessLookupError):
                os.kill(builder, signal.SIGKILL)
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def _builders(folder: Path) -> list[int]:
    """Return the processes that clone an environment into the folder, or run from one in it. Linux only; else none."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is not ours
            program, *arguments = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            clones = any(Path(argument).name == CLONER for argument in arguments)
            if any(word.startswith(f"{folder}/") for word in ([program, *arguments] if clones else [program])):
                found.append(int(process.name))
    return found


def failure(reward: str, report: str) -> DroverError:
    """Make the error for Ray's ``report`` of a failed build, which is a traceback around pip's output."""
    return DroverError(
        f"the environment of reward {reward!r} cannot be built: {last_words(report)}; correct its packages"
    )


def last_words(report: str) -> str:
    """Return pip's last line marked as an error; without one the last line of all, which ends Ray's traceback."""
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    marked = [line.removeprefix(MARK) for line in lines if line.startswith(MARK)]
    last = (marked or lines or ["Ray gives no reason"])[-1].rstrip(".")
    return f"it took longer than {BUILD_S // 60} minutes" if last.endswith("TimeoutError") else last
