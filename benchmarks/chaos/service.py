"""Runs the `drover` command of a chaos run: restarts it when it fails, as a supervisor does, and reads its reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

DROVER = str(Path(sys.executable).with_name("drover"))
RECIPE = f"{Path(__file__).with_name('recipe.py')}:chaos"
PATIENCE_S = 600.0
POLL_S = 0.02
STARTS_AGAIN_S = 1.0  # pause before a restart, such as systemd's RestartSec
FAILURES = 3  # most failures in a row without an update between them


@dataclass(frozen=True, slots=True)
class Update:
    """The number of one reported update, and the time on this process's clock: ``Update(12, at_s=81.2)``."""

    number: int
    at_s: float


class Service:
    """Runs ``drover train`` of the chaos recipe in a folder of its own. Leaving the context ends all of its processes."""

    def __init__(
        self,
        folder: Path,
        *,
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        beside: Callable[[], None] = lambda: None,
    ) -> None:
        """``arguments``: options of the recipe. ``prefix``: words before the command, such as ``ip netns exec NAME``.
        ``beside`` is called at every look; it may restart nodes of a cluster.
        """
        folder.mkdir(parents=True)
        self.folder, self.journal = folder, folder / "journal"
        self.journal.touch()
        run = ("--runs-dir", str(folder), "--run-name", "run", "--resume-if-begun", "--plain")
        self._command = [*prefix, DROVER, "train", RECIPE, "--journal", str(self.journal), *arguments, *run]
        self._beside = beside
        self._env = {**_clean_environment(), **(env or {})}
        self._metrics, self._read = folder / "run" / "metrics.jsonl", 0
        self.updates: list[Update] = []
        self.events: list[str] = []
        self.starts = 0
        self._starts_at_s = self._failures = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        family = self.family()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for process in family:
            with suppress(psutil.Error):
                process.kill()

    # ---------------------------------------------------------------------------------------- processes

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def family(self) -> list[psutil.Process]:
        """Return the processes of the command and of its descendants."""
        with suppress(psutil.Error):
            command = psutil.Process(self.process.pid)
            return [command, *command.children(recursive=True)]
        return []

    def children(self, title: str) -> list[psutil.Process]:
        """Return the processes of the family whose command line contains ``title``."""
        found = []
        for process in self.family():
            with suppress(psutil.Error):
                if title in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def worker(self, role: str) -> int:
        """Return the pid of the process that worked last as "actor" or "reward"; 0 before the first."""
        return self.work(role)[-1][0] if self.work(role) else 0

    def work(self, role: str) -> list[tuple[int, int]]:
        """Return (pid, samples) of every call of that role, in order."""
        lines = (line.split() for line in self.journal.read_text().splitlines())
        return [(int(pid), int(samples)) for who, pid, samples in lines if who == role]

    # ------------------------------------------------------------------------------------------ progress

    @property
    def furthest(self) -> int:
        """The highest update that has been reported."""
        return max((update.number for update in self.updates), default=0)

    @property
    def finished(self) -> bool:
        return self._process is not None and self._process.poll() == 0

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "run" / "summary.json").read_text())
        return found

    def until(self, reached: Callable[[], bool], what: str, *, patience_s: float = PATIENCE_S) -> float:
        """Look until ``reached()`` is True; return the time. Restarts the command each time it has failed."""
        gives_up_s = time.monotonic() + patience_s
        while True:
            self.look()
            if reached():
                return time.monotonic()
            if time.monotonic() > gives_up_s:
                raise TimeoutError(f"no {what} after {patience_s:.0f} s; see {self.folder}: {self.last_words()}")
            time.sleep(POLL_S)

    def look(self) -> None:
        """Read the new reports; restart the command if it has failed."""
        self._tail()
        self._beside()
        code = self.process.poll()
        if code is None or code == 0:
            return
        if not self._starts_at_s:
            self._starts_at_s = time.monotonic() + STARTS_AGAIN_S
            self._failures += 1
            if self._failures > FAILURES:
                raise RuntimeError(f"the run failed {FAILURES} times without an update; see {self.folder}")
        elif time.monotonic() > self._starts_at_s:
            self._starts_at_s = 0.0
            self._start()

    def last_words(self) -> str:
        return (self.folder / "output").read_text()[-1500:]

    def _start(self) -> None:
        self.starts += 1
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                self._command, stdout=output, stderr=output, env=self._env, start_new_session=True
            )

    def _tail(self) -> None:
        if not self._metrics.exists():
            return
        with self._metrics.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            report = json.loads(line)
            if report["kind"] == "update":
                self.updates.append(Update(int(report["scalars"]["update"]), time.monotonic()))
                self._failures = 0
            elif report["kind"] == "event":
                self.events.append(report["text"])


def _clean_environment() -> dict[str, str]:
    """Return this process's environment without the addresses of a Ray or Redis, and with Ray workers of normal priority."""
    kept = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "DROVER_REDIS_URL")}
    return {**kept, "RAY_worker_niceness": "0"}
