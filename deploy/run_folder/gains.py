"""Computes the rise of held-out rewards with standard errors; values of equal prompts and noise are paired.

The values are in ``before.json`` and ``after.json`` of a run folder, as `Judged` columns.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from drover.common.files import write_whole
from drover.common.types import Judged
from drover.deploy.run_folder.results import read_json


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over independent observations. Example: ``Mean(5.42, error=0.11, std=0.88, count=64)``."""

    mean: float
    error: float | None  # standard error of the mean; None for a single observation
    std: float
    count: int


@dataclass(frozen=True, slots=True)
class Gain:
    """One reward on one held-out set, before and after training. ``rise`` is over the samples that both moments have."""

    before: Mean
    after: Mean
    rise: Mean


def keep(folder: Path, moment: str, values: Sequence[Judged]) -> None:
    """Write the values of an evaluation into the run folder."""
    columns = [
        {**asdict(one), "values": [value if math.isfinite(value) else None for value in one.values]} for one in values
    ]
    write_whole(folder / f"{moment}.json", (json.dumps(columns) + "\n").encode())


def gains(folder: Path) -> dict[str, Gain]:
    """Return "SET/REWARD" -> gain, for pairs with valid values of the same samples before and after training.

    Raises `CheckpointError` for a damaged file.
    """
    before, after = (_read(folder / f"{moment}.json") for moment in ("before", "after"))
    found = {}
    for name in before.keys() & after.keys():
        draws = sorted(before[name].keys() & after[name].keys())
        pairs = [(before[name][draw], after[name][draw]) for draw in draws]
        rows = [np.concatenate(side) for side in zip(*pairs, strict=True)] if pairs else []
        if rows and np.isfinite(rows[1] - rows[0]).any():
            found[name] = _gain(*rows)
    return {name: found[name] for name in after if name in found}


def _gain(before: np.ndarray, after: np.ndarray) -> Gain:
    """Return the gain from values [prompts, samples], NaN where a value is missing.

    A reward over sets gives all samples of a prompt one value, which counts as one observation.
    """
    if all((rows == rows[:, :1]).all() for rows in (before, after)):
        before, after = before[:, :1], after[:, :1]
    return Gain(_mean(before), _mean(after), _mean(after - before))


def _mean(values: np.ndarray) -> Mean:
    known = values[np.isfinite(values)]
    error = float(known.std(ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else None
    return Mean(float(known.mean()), error, float(known.std()), len(known))


def _read(path: Path) -> dict[str, dict[int, np.ndarray]]:
    """Read name -> draw -> values [prompts, samples]."""
    columns: list[dict[str, Any]] = read_json(path, list, "delete it: errors of means are left out then") or []
    found: dict[str, dict[int, np.ndarray]] = {}
    for one in columns:
        values = np.array([math.nan if value is None else value for value in one["values"]], dtype=np.float64)
        found.setdefault(one["name"], {})[one["draw"]] = values.reshape(-1, one["each"])
    return found
