"""Result folders that are there whole or not at all, and libraries that keep quiet."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(folder: str | Path) -> Iterator[Path]:
    """A temporary folder that takes the place of ``folder`` when the block ends well, and vanishes when it fails."""
    target = Path(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        written = Path(scratch, "new")
        written.mkdir()
        yield written
        if target.exists():
            # A folder cannot be renamed over a full one; what was there leaves with the scratch folder.
            target.rename(Path(scratch, "old"))
        written.rename(target)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No progress bars and no advice from diffusers and transformers: library code never prints."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    loggers = (of_diffusers, of_transformers)
    before = [(logger.is_progress_bar_enabled(), logger.get_verbosity()) for logger in loggers]
    try:
        for logger in loggers:
            logger.disable_progress_bar()
            logger.set_verbosity_error()
        yield
    finally:
        for logger, (had_bars, verbosity) in zip(loggers, before, strict=True):
            logger.set_verbosity(verbosity)
            if had_bars:
                logger.enable_progress_bar()
