"""Decides whether a run can go on with a changed configuration: it must learn the same, but its service may change.

Every checkpoint describes its run, field by field. A file or folder that a field names counts by its content: a reward
whose weights were replaced is another reward, and a checkout that was moved is the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from drover.common.errors import CheckpointError, ConfigError
from drover.deploy.config import RunConfig
from drover.learner.saving.checkpoint_files import number_of, read_state, whole

SERVICE = frozenset({"pools", "checkpoint_every", "stall_s", "lease_s", "blobs_s"})  # sizes and times: never compared
FREE = frozenset(
    {"iterations", "evaluate_every", "max_lag", "batch_size", "watch.stop", "watch.patience", "watch.margin"}
)
LONGER = "optimizer.decay"  # may change together with the iterations, from which recipes derive it
LONG = 120  # characters; a longer text is replaced by its size and a hash
NAMED = 4  # differences that an error names
CONTENT = " (content "
WINDOW, WINDOWS = 1 << 16, 16  # bytes per window and windows per file that are hashed; shorter files are hashed whole
MOST_FILES = 256  # files of a folder whose content is hashed; of further ones only name and size


def check_newest(config: RunConfig, checkpoints: Path) -> None:
    """Raise `ConfigError` if the newest readable checkpoint is of a run that learns something else.

    Damaged checkpoints are skipped here; the learner reports them.
    """
    for folder in reversed(whole(checkpoints)):
        try:
            read_state(folder)
        except CheckpointError:
            continue
        check(config, folder)
        return


def check(config: RunConfig, checkpoint: Path) -> list[str]:
    """Return a text for each changed field that may change. Raises `ConfigError` if another field has changed."""
    state, now = read_state(checkpoint), describe(config)
    was: Mapping[str, str] = state["recipe"]
    changed = {name: _told(name, was, now) for name in {**was, **now} if not _same(name, was, now)}
    free = FREE | {LONGER} if "iterations" in changed else FREE
    refused = [told for name, told in changed.items() if name not in free]
    run = checkpoint.parent.parent
    if refused:
        more = f"; and {len(refused) - NAMED} more" if len(refused) > NAMED else ""
        raise ConfigError(
            f"{run} learns something else: {'; '.join(refused[:NAMED])}{more}. Resume it with the parameters that it was "
            "begun with, or begin a run of its own under another --run-name"
        )
    if config.iterations < state["progress"]["update"]:
        raise ConfigError(
            f"{run} has done {number_of(checkpoint)} iterations, which is more than {config.iterations}; raise the number"
        )
    return [f"goes on with {told}" for told in changed.values()]


def describe(config: RunConfig) -> dict[str, str]:
    """Return field -> value as text, for every field that decides the result: ``optimizer.lr`` -> ``0.0003``."""
    return {
        name: text
        for field in fields(config)
        if field.name not in SERVICE
        for name, text in _leaves(field.name, getattr(config, field.name))
    }


def _leaves(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if is_dataclass(value) and not isinstance(value, type):
        yield name, type(value).__name__
        if packages := getattr(value, "packages", ()):  # a reward with other versions is another reward
            yield f"{name}.packages", _text(packages)
        for field in fields(value):
            yield from _leaves(f"{name}.{field.name}", getattr(value, field.name))
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _leaves(f"{name}[{key}]", each)
    elif isinstance(value, tuple) and value and all(is_dataclass(each) for each in value):
        for number, each in enumerate(value):
            yield from _leaves(f"{name}[{getattr(each, 'name', number)}]", each)
    else:
        yield name, _text(value)


def _text(value: Any) -> str:
    """Return the value as text, with a hash of the content if it names an existing file or folder."""
    if isinstance(value, Path) or (isinstance(value, str) and os.sep in value):
        content = _content(Path(value))
        return f"{value}{CONTENT}{content})" if content else str(value)
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    if len(text) <= LONG:
        return text
    size = f"{len(value)} entries" if isinstance(value, tuple) else f"{len(text)} characters"
    return f"{size}, {blake2b(text.encode(), digest_size=6).hexdigest()}"


def _content(path: Path) -> str:
    """Return a hash of names, sizes and windows spread over the files; "" for a path that does not exist."""
    digest = blake2b(digest_size=6)
    try:
        files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
        for number, file in enumerate(files):
            size = file.stat().st_size
            digest.update(f"{file.relative_to(path)}\0{size}\0".encode())
            if number < MOST_FILES:
                with file.open("rb") as opened:
                    for place in range(WINDOWS):
                        opened.seek(max(place * WINDOW, place * (size - WINDOW) // (WINDOWS - 1)))
                        digest.update(opened.read(WINDOW))
    except (OSError, ValueError):
        return ""
    return digest.hexdigest()


def _same(name: str, was: Mapping[str, str], now: Mapping[str, str]) -> bool:
    if name not in was or name not in now:
        return name.startswith("watch.")  # a watch may be added or removed
    if name == "watch" or was[name] == now[name]:
        return True
    (path, _, content), (new_path, _, new_content) = was[name].partition(CONTENT), now[name].partition(CONTENT)
    return content == new_content if content and new_content else path == new_path


def _told(name: str, was: Mapping[str, str], now: Mapping[str, str]) -> str:
    return f"{name}: was {was.get(name, 'not there')}, now {now.get(name, 'not there')}"
