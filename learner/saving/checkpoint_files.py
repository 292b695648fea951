"""Write a checkpoint's files in threads, check them, and set damaged checkpoints aside. Knows no model.

The ranks' threads communicate through the file system alone: each writes its shard into a ``.partial`` folder, then a small
file that marks it as done. Once all shards are done, rank 0's thread writes ``state.json`` and renames the folder. A folder
without a suffix is whole.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
import xxhash

from drover.common.errors import CheckpointError
from drover.common.files import explained, sync, write_whole
from drover.learner.saving.shards import HostCopy, file_sum

FORMAT = 2  # the version of state.json
OTHERS_S = 600.0  # the time that the other ranks have for their shards once rank 0 has written its own
POLL_S = 0.05
_NAME = re.compile(r"update-(\d+)")


def whole(folder: Path) -> list[Path]:
    """The checkpoints of a folder, damaged or not, the oldest first."""
    return sorted((path for path in folder.glob("update-*") if _NAME.fullmatch(path.name)), key=number_of)


def read_state(folder: Path) -> dict[str, Any]:
    """The saved state besides tensors. Raises `CheckpointError` when the file has changed since it was written."""
    try:
        content = json.loads((folder / "state.json").read_bytes())
        state: dict[str, Any] = content["state"]
        if content["format"] == FORMAT and content["checksum"] == _text_sum(state):
            return state
        reason = "does not fit its checksum" if content["format"] == FORMAT else "is of another version of drover"
    except FileNotFoundError:
        reason = "is missing"
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    except (ValueError, RecursionError):
        reason = "is not JSON"
    except (KeyError, TypeError):
        reason = f"is no state of format {FORMAT}"
    raise CheckpointError(f"{folder / 'state.json'} {reason}; resume from another checkpoint")


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write ``state.json``, last of all: it makes a folder of shards a checkpoint. Raises `CheckpointError`."""
    content = {"format": FORMAT, "checksum": _text_sum(state), "state": state}
    write_whole(folder / "state.json", json.dumps(content).encode())


def damage(folder: Path) -> str:
    """The fault of a checkpoint in words; "" where every file is as it was written."""
    try:
        for name, wanted in read_state(folder)["checksums"].items():
            if file_sum(folder / name) != wanted:
                return f"{name} does not fit its checksum"
    except CheckpointError as error:
        return str(error).partition("; ")[0].removeprefix(f"{folder}/")
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"a file cannot be read ({error.strerror})"
    return ""


def set_aside(folder: Path, trouble: str, *, instead: Path) -> str:
    """Rename a damaged checkpoint and return a report of it.

    It then neither counts as one of the kept checkpoints nor blocks the names of updates that are made again.
    """
    aside = folder.with_name(f"{folder.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    return (
        f"checkpoint {folder.name} is damaged ({trouble}): going on from {instead.name}, the one before; "
        f"what came after it is done again, and {aside.name} stays until the next checkpoint"
    )


def number_of(folder: Path) -> int:
    return int(folder.name.removeprefix("update-"))


def _text_sum(state: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64(json.dumps(state, sort_keys=True).encode()).hexdigest()


class Writer(threading.Thread):
    """The thread that writes one rank's shard of one checkpoint; rank 0's also completes it. ``error`` is its failure."""

    def __init__(self, copied: HostCopy, target: Path, *, life: int, state: Mapping[str, Any], keep: int) -> None:
        """``state`` must not change any more. ``life`` is the same on all ranks, and differs after a restart."""
        super().__init__(name="checkpoint", daemon=True)
        self._copied, self.target, self._state, self._keep = copied, target, state, keep
        self._partial = target.with_name(f"{target.name}.{life}.partial")
        self._rank, self._num_ranks = dist.get_rank(), dist.get_world_size()
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            with explained(f"checkpoint {self.target} cannot be written"):
                self._write_shard()
                if self._rank == 0:
                    self._make_whole()
        except Exception as error:  # raised by `check` or `finish`, where training sees it
            self.error = error
            if self._rank == 0:
                shutil.rmtree(self._partial, ignore_errors=True)

    def _write_shard(self) -> None:
        self._partial.mkdir(parents=True, exist_ok=True)
        try:
            checksum = self._copied.write(self._partial / f"rank-{self._rank}.safetensors")
            write_whole(self._partial / f"rank-{self._rank}.done", checksum.encode())
        except (OSError, CheckpointError):
            (self._partial / f"rank-{self._rank}.failed").touch()  # an empty file fits on a full disk
            raise

    def _make_whole(self) -> None:
        checksums = {f"rank-{i}.safetensors": self._await(i) for i in range(self._num_ranks)}
        write_state(self._partial, {**self._state, "ranks": self._num_ranks, "checksums": checksums})
        for done in self._partial.glob("*.done"):
            done.unlink()
        sync(self._partial)
        if self.target.exists():
            shutil.rmtree(self.target)
        self._partial.rename(self.target)
        sync(self.target.parent)
        for old in (*whole(self.target.parent)[: -self._keep], *self.target.parent.glob("update-*.damaged")):
            shutil.rmtree(old)

    def _await(self, rank: int) -> str:
        """Wait until that rank's shard is on the disk. Returns its checksum."""
        done, failed = (self._partial / f"rank-{rank}.{ending}" for ending in ("done", "failed"))
        gives_up_s = time.monotonic() + OTHERS_S
        while not done.exists():
            if failed.exists():
                raise CheckpointError(f"checkpoint {self.target} cannot be written: rank {rank} failed, and says why")
            if time.monotonic() > gives_up_s:
                raise CheckpointError(
                    f"checkpoint {self.target} cannot be written: rank {rank} was not done {OTHERS_S:.0f} s after rank 0; "
                    "the run folder must be on storage that all ranks share"
                )
            time.sleep(POLL_S)
        return done.read_text()
