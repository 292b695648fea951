"""Describe an error of a user's own code in one sentence: the error, and the user's line that raised it."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from drover.common.errors import DroverError

PEERS = "/torch/distributed/"  # in the paths of the files that exchange tensors with other processes
INSTALLED = frozenset({"site-packages", "dist-packages"})


def sentence(error: BaseException) -> str:
    """``KeyError: 'target' at mine.py:28``; without the place if the error passed no line of a user's file."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    said = f"{type(error).__name__}: {first}" if first else type(error).__name__
    where = place(error)
    return f"{said} at {where}" if where else said


@contextmanager
def in_a_sentence(doing: str) -> Iterator[None]:
    """Turn an error of foreign code in the block into ``DroverError("DOING: KeyError: 'target' at mine.py:28")``.

    An error of torch.distributed passes unchanged: another rank died, and the user's code is not the cause.
    """
    try:
        yield
    except DroverError:
        raise
    except Exception as error:
        if any(PEERS in frame.filename for frame in traceback.extract_tb(error.__traceback__)):
            raise
        raise DroverError(f"{doing}: {sentence(error)}") from error


def place(error: BaseException) -> str:
    """The innermost line of a user's file that the error passed, as ``mine.py:28``; "" where there is none.

    A user's file is one that belongs neither to drover nor to an installed package nor to Python.
    """
    if isinstance(error, SyntaxError) and error.filename is not None and _is_users(error.filename):
        return f"{short(error.filename)}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    mine = [frame for frame in frames if _is_users(frame.filename)]
    return f"{short(mine[-1].filename)}:{mine[-1].lineno}" if mine else ""


def _is_users(file: str) -> bool:
    path = Path(file).resolve()
    installed = INSTALLED.intersection(path.parts)
    return not file.startswith("<") and not installed and not any(path.is_relative_to(home) for home in _homes())


@cache
def _homes() -> tuple[Path, ...]:
    """The folders of Python's own library and of drover's packages, which may be links."""
    import drover

    packages = [folder for root in drover.__path__ for folder in Path(root).iterdir() if folder.is_dir()]
    return tuple(folder.resolve() for folder in (*packages, Path(sysconfig.get_path("stdlib"))))


def short(file: str) -> str:
    """The path relative to the working folder if the file lies below it, else the whole path."""
    path = Path(file).resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
