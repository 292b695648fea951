"""What every reward that loads a model from a folder or a hub does the same way."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


def first_line(error: Exception) -> str:
    """What a library says of a failure, fit to stand inside a sentence of ours."""
    return str(error).strip().split("\n")[0].rstrip(".;:") or type(error).__name__


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no advice while it loads: library code never prints. Diffusers is not imported for it."""
    from transformers.utils import logging as theirs

    had_bars, verbosity = theirs.is_progress_bar_enabled(), theirs.get_verbosity()
    theirs.disable_progress_bar()
    theirs.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        theirs.set_verbosity(verbosity)
        if had_bars:
            theirs.enable_progress_bar()
