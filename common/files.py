"""Write files and folders whole or not at all. Knows no format, and nothing of runs."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from drover.common.errors import CheckpointError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LFS = b"version https://git-lfs."


@contextmanager
def explained(failure: str) -> Iterator[None]:
    """Turn an error of the disk into a `CheckpointError`: ``failure``, its reason and the way out, in one sentence."""
    try:
        yield
    except OSError as error:
        fix = "free space there" if error.errno in FULL else "make it writable"
        raise CheckpointError(f"{failure} ({error.strerror or error}); {fix}, then go on with --resume") from error
    except SafetensorError as error:  # also an error of the disk, as safetensors writes files by itself
        raise CheckpointError(f"{failure} ({error}); see to its disk, then go on with --resume") from error


def write_whole(path: Path, content: bytes) -> None:
    """Replace the file by ``content`` in one step: readers and crashes see the old file or the new one.

    Raises `CheckpointError`; then the old file is unchanged, and no other file is left behind.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    with explained(f"cannot write {path}"):
        try:
            with draft.open("wb", buffering=0) as file:
                write_all(file.fileno(), content)
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def write_all(descriptor: int, content: bytes | memoryview) -> None:
    """Write every byte: a single call of the system may take only some of them. Raises `OSError`."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


@contextmanager
def replacing(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``folder`` when the block ends well, and is deleted when the block fails.

    Raises `CheckpointError` where the disk is the reason.
    """
    target = Path(folder)
    with explained(f"cannot write {target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
            written = Path(scratch, "new")
            written.mkdir()
            yield written
            if target.exists():
                # A folder cannot be renamed over a full one; the old one is deleted with the scratch folder.
                target.rename(Path(scratch, "old"))
            written.rename(target)


def sync(folder: Path) -> None:
    """Bring the entries of a folder to the disk. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_lfs_pointer(begin: bytes) -> bool:
    """Whether the first bytes of a file are those of a git LFS pointer, which stands for a large file not yet fetched."""
    return begin.startswith(_LFS)
