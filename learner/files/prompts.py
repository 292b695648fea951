"""Prompts from a file, without repetitions, with a held-out part that stays held out. Issues no order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from drover.common import seeds
from drover.common.errors import ConfigError
from drover.learner.files.records import BadRecord, clean, count_text
from drover.learner.files.tables import read_columns


@dataclass(frozen=True, slots=True)
class PromptSplit:
    """Example: ``PromptSplit(train=("a cat", "a dog"), heldout=("a cow",), skipped={"repeated": 7, "blank": 1})``.

    ``train`` is in the file's order; ``heldout`` in that of its hashes, so any first part of it is a fair sample.
    """

    train: tuple[str, ...]
    heldout: tuple[str, ...]
    skipped: Mapping[str, int]  # reason -> rows


def read_prompts(
    path: Path, column: str = "prompt", *, heldout: float = 0.0, seed: int = 0, limit: int | None = None
) -> PromptSplit:
    """The distinct prompts of a .txt (one a line), .jsonl, .csv, .tsv or .parquet file, split. Raises `ConfigError`.

    ``heldout`` is a share in [0, 1), not a number: which side a prompt falls on depends on it, the seed and the share
    alone, so rows that are added or removed move no other prompt across, which an exact number could not promise. Two
    prompts that differ in white space or upper case fall on one side. Only the first ``limit`` distinct prompts are
    read. Memory is that of the distinct prompts.
    """
    if not 0 <= heldout < 1:
        raise ConfigError(f"heldout is the share of the prompts that is held out, got {heldout}; give 0 up to below 1")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is a number of prompts, got {limit}; give at least 1 or None")
    prompts, skipped = _distinct(path, column, limit)
    if not prompts:
        todo = "write one per line" if path.suffix.lower() == ".txt" else f"fill its column {column!r}"
        raise ConfigError(f"the prompt file {path} holds no prompt; {todo}{count_text(skipped)}")
    if not heldout:
        return PromptSplit(tuple(prompts), (), skipped)
    places = {prompt: _place(prompt, seed) for prompt in prompts}
    apart = sorted((prompt for prompt in prompts if places[prompt] < heldout), key=places.__getitem__)
    train = tuple(prompt for prompt in prompts if places[prompt] >= heldout)
    if not train or not apart:
        raise ConfigError(
            f"a held-out share of {heldout} splits the {len(prompts)} prompts of {path} into {len(train)} to train on "
            f"and {len(apart)} held out; choose a share that leaves both"
        )
    return PromptSplit(train, tuple(apart), skipped)


def _distinct(path: Path, column: str, limit: int | None) -> tuple[dict[str, None], Counter[str]]:
    prompts: dict[str, None] = {}
    skipped: Counter[str] = Counter()
    for (value,) in read_columns(path, (column,), skipped):
        try:
            prompt = clean(value)
        except BadRecord as bad:
            skipped[bad.reason] += 1
            continue
        if prompt in prompts:
            skipped["repeated"] += 1
            continue
        prompts[prompt] = None
        if len(prompts) == limit:
            break
    return prompts, skipped


def _place(prompt: str, seed: int) -> float:
    """Where the prompt stands in [0, 1): uniform over prompts, equal for two that differ in upper case only."""
    return seeds.derive(seed, "held-out prompt", prompt.casefold()) / 2**63
