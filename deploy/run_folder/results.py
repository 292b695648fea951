"""The run folder: what a run leaves behind, written whole or not at all. Knows no role and starts nothing.

``runs/NAME/`` holds ``metrics.jsonl`` (one report a line), ``run.log``, ``summary.json``, ``curves.png``, ``samples.png``
and ``checkpoints/``.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from drover.common.errors import CheckpointError, ConfigError
from drover.common.files import explained, write_all, write_whole
from drover.common.types import Report
from drover.deploy.run_folder.history import History
from drover.deploy.run_folder.pictures import SamplePair, curves_png, samples_png

T = TypeVar("T")

Resume = Literal["never", "must", "may"]
"""Whether a run of that name is begun, gone on with, or either."""

log = logging.getLogger(__name__)
LOCK = ".lock"
DRIVER = "driver"  # its name among the workers in the file of metric targets
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


class RunFolder:
    """One run's files. A write that fails, as on a full disk, raises CheckpointError and leaves what was there."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self.targets = self.path / "metrics_targets.json"
        self.curves = self.path / "curves.png"
        self.samples = self.path / "samples.png"
        self.checkpoints = self.path / "checkpoints"
        self._lock: IO[str] | None = None  # held by the process that runs it, for as long as this lives

    @classmethod
    def create(cls, name: str, root: Path, *, resume: Resume = "never") -> RunFolder:
        """The folder of a new run, or with ``resume`` of one that exists; ConfigError where it is the other way."""
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"run name {name!r} cannot be a folder; use letters, digits, '.', '-' and '_' (at most 100), "
                "starting with a letter, digit or '_'."
            )
        if str(root).startswith("~"):
            raise ConfigError(f"{str(root)!r} names no folder here; write the whole path of the folder of runs.")
        folder = cls(Path(root) / name)
        started = folder.path.is_dir() and any(folder.path.iterdir())
        anew = started and resume == "never" and folder._ended == "failed" and not folder.begun
        if resume == "must" and not started:
            raise ConfigError(
                f"no run to resume at {folder.path}; begin it with --run-name {name}, or correct the name."
            )
        if started and resume == "never" and not anew:
            state = folder._ended or "started"
            raise ConfigError(
                f"{folder.path} holds a {state} run; pass --resume {name} to go on with it, "
                "or another --run-name to begin anew."
            )
        try:
            folder.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot create {folder.path} ({error.strerror}); make room or choose another place."
            ) from error
        folder._lock = _hold(folder.path)
        if anew:
            folder._empty()
        elif started:
            folder._cut_torn_line()
        return folder

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end, and its summary says so; a damaged one is written anew by going on."""
        return self._ended == "finished"

    @property
    def begun(self) -> bool:
        """Whether there is an update or a checkpoint to lose."""
        saved = self.checkpoints.is_dir() and any(self.checkpoints.iterdir())
        return saved or any(report.kind == "update" for report in self.reports())

    def release(self) -> None:
        """The run is over: this process no longer holds the folder."""
        if self._lock is not None:
            with suppress(OSError):
                self._lock.truncate(0)
            self._lock.close()
            self._lock = None

    def discard(self) -> None:
        """Remove the folder: the name is free again."""
        self.release()  # NFS keeps an open file's folder
        shutil.rmtree(self.path, ignore_errors=True)  # why the run failed is what is to be told

    @property
    def _ended(self) -> str:
        """As its summary says; "" without a whole one."""
        with suppress(CheckpointError):
            return str((self.read_summary() or {}).get("ended", ""))
        return ""

    def _empty(self) -> None:
        """Remove what a run left that failed before it began, but for the lock."""
        for path in self.path.iterdir():
            if path.is_dir() and path != self.checkpoints:
                shutil.rmtree(path)
            elif path.is_file() and path.name != LOCK:
                path.unlink()

    def append(self, report: Report) -> None:
        """Add one line to metrics.jsonl. A line that cannot be written whole is taken back."""
        line = json.dumps(
            {
                "kind": report.kind,
                "at_s": report.at_s,
                "version": report.version,
                "scalars": {key: value if math.isfinite(value) else None for key, value in report.scalars.items()},
                "text": report.text,
            },
            ensure_ascii=False,
        )
        with explained(f"cannot write {self.metrics}"), self.metrics.open("ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                write_all(file.fileno(), f"{line}\n".encode())
            except OSError:
                with suppress(OSError):
                    file.truncate(before)
                raise

    def reports(self) -> list[Report]:
        """All reports of metrics.jsonl, in order; what was not finite is NaN. A torn last line is left out."""
        if not self.metrics.exists():
            return []
        try:
            lines = self.metrics.read_bytes().split(b"\n")[:-1]
        except OSError as error:
            raise _unreadable(self.metrics, error) from error
        return [_report(line, f"{self.metrics}, line {number}") for number, line in enumerate(lines, start=1)]

    def read_summary(self) -> dict[str, Any] | None:
        """summary.json, which a run has once it has ended. Raises `CheckpointError` where it is damaged."""
        fix = f"and --resume {self.path.name} writes another"
        summary = read_json(self.summary, dict, fix)
        if summary is not None and not isinstance(summary.get("ended"), str):
            raise _damaged(self.summary, KeyError("ended"), fix)
        return summary

    def driver(self) -> str | None:
        """HOST:PORT where the driver has everyone's metrics, of a run that noted it. Raises `CheckpointError` for damage."""
        fix = "a run that is under way writes another"
        try:
            groups = read_json(self.targets, list, fix) or []
            return next((group["targets"][0] for group in groups if group["labels"]["worker"] == DRIVER), None)
        except (KeyError, IndexError, TypeError) as error:
            raise _damaged(self.targets, error, fix) from error

    def note_metrics(self, groups: Sequence[Mapping[str, object]]) -> None:
        """Replace metrics_targets.json: where every role's metrics are, as Prometheus' file discovery reads it."""
        write_whole(self.targets, (json.dumps(groups, indent=2) + "\n").encode())

    def write_summary(self, summary: Mapping[str, object]) -> None:
        """Replace summary.json."""
        write_whole(self.summary, (json.dumps(summary, indent=2, ensure_ascii=False) + "\n").encode())

    def draw_curves(self) -> None:
        """Draw curves.png (1600 x 1000) from metrics.jsonl."""
        write_whole(self.curves, curves_png(History.of(self.reports()), title=self.path.name))

    def draw_samples(self, pair: SamplePair) -> None:
        """Draw samples.png: the same prompts and seeds before and after training."""
        write_whole(self.samples, samples_png(pair))

    def _cut_torn_line(self) -> None:
        """A crash can leave half a line, to which the next would be glued."""
        if self.metrics.exists():
            content = self.metrics.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(self.metrics, whole)


def _hold(folder: Path) -> IO[str]:
    """Keep other processes from running the same folder; the lock ends with this process, however it ends."""
    import fcntl

    file = (folder / LOCK).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        raise ConfigError(
            f"{folder} is being run by {file.read() or 'another process'}; stop that first, or give another --run-name."
        ) from error
    except OSError as error:  # storage that knows no locks
        log.warning("%s cannot be locked (%s): see to it that only one process runs it", folder, error.strerror)
        return file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def holder(lock: Path) -> tuple[bool | None, str]:
    """(Whether a process runs the folder of this lock, or None where that cannot be seen; the process that took it last)."""
    import fcntl

    try:
        with lock.open() as file:
            by = file.read()
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True, by
            except OSError:  # storage that knows no locks
                return None, by
            return False, by
    except FileNotFoundError:
        return False, ""


def read_json(path: Path, kind: type[T], fix: str) -> T | None:
    """The JSON that `write_whole` wrote there; None where there is no such file.

    Raises `CheckpointError` where it is damaged: that error says to delete it, and then ``fix``.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise _damaged(path, error, fix) from error
    if not isinstance(content, kind):
        raise _damaged(path, TypeError(f"it holds a {type(content).__name__}, wanted a {kind.__name__}"), fix)
    return content


def _damaged(path: Path, error: Exception, fix: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged ({type(error).__name__}: {error}); delete it, {fix}")


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"cannot read {path} ({error.strerror}); make it readable")


def _report(line: bytes, where: str) -> Report:
    try:
        fields = json.loads(line)
        scalars = {key: math.nan if value is None else float(value) for key, value in fields["scalars"].items()}
        return Report(
            kind=fields["kind"], at_s=fields["at_s"], version=fields["version"], scalars=scalars, text=fields["text"]
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{where} is no report ({error}); delete that line.") from error
