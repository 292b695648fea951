"""Models by folder or hub id: tell the two apart, shorten the libraries' errors to a line, and silence their output."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drover.common.errors import ConfigError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_OF_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def is_folder(checkpoint: str | Path, fix: str) -> bool:
    """True for a folder that exists, False for a text in the form of a hub id.

    Raises `ConfigError`, ending in ``fix``, for anything else: a folder that is missing, a single file.
    """
    path = Path(checkpoint)
    if path.is_dir():
        return True
    if path.is_file():
        raise ConfigError(f"{str(checkpoint)!r} is a single file, wanted a folder; {fix}")
    if isinstance(checkpoint, Path) or path.suffix in _OF_FILES or not _HUB_ID.fullmatch(checkpoint):
        raise ConfigError(f"there is no checkpoint folder {str(checkpoint)!r}; {fix}")
    return False


def first_line(error: Exception) -> str:
    """The first line of a library's error, to be used inside a sentence; the error's class where the message is empty."""
    return str(error).strip().split("\n")[0].rstrip(".;:") or type(error).__name__


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the progress bars and advice of transformers inside the block. Does not import diffusers."""
    from transformers.utils import logging as of_transformers

    with _quiet(of_transformers):
        yield


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Silence the progress bars and advice of diffusers, and of transformers, which it uses, inside the block."""
    from diffusers.utils import logging as of_diffusers

    with _quiet(of_diffusers), quiet_transformers():
        yield


@contextmanager
def _quiet(theirs: Any) -> Iterator[None]:
    """Silence one library by its module ``utils.logging``, whose functions have the same names in both libraries."""
    had_bars, verbosity = theirs.is_progress_bar_enabled(), theirs.get_verbosity()
    theirs.disable_progress_bar()
    theirs.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        theirs.set_verbosity(verbosity)
        if had_bars:
            theirs.enable_progress_bar()
