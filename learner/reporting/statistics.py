"""Means and costs of an iteration's rewards, by name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drover.learner.examples import MeasuredGroup


def rewards_by_name(groups: Sequence[MeasuredGroup]) -> dict[str, float]:
    """``reward/NAME/mean|std|valid_share`` over an iteration's samples."""
    scalars = {}
    for name in dict.fromkeys(name for group in groups for name in group.rollout.rewards):
        mine = [group for group in groups if name in group.measurements]
        values = np.concatenate([group.values(name) for group in mine])
        valid = np.concatenate([group.valid(name) for group in mine])
        scalars[f"reward/{name}/valid_share"] = float(valid.mean())
        if valid.any():
            scalars[f"reward/{name}/mean"] = float(values[valid].mean())
            scalars[f"reward/{name}/std"] = float(values[valid].std())
    return scalars


def costs(groups: Sequence[MeasuredGroup]) -> dict[str, float]:
    """``cost/rollout/s_per_sample`` and ``cost/reward/NAME/s_per_sample``: seconds of one worker's time over an iteration."""
    scalars = {"cost/rollout/s_per_sample": _per_sample([(group.rollout.sampling_s, group) for group in groups])}
    for name in dict.fromkeys(name for group in groups for name in group.rollout.rewards):
        mine = [(group.measurements[name].scoring_s, group) for group in groups if name in group.measurements]
        scalars[f"cost/reward/{name}/s_per_sample"] = _per_sample(mine)
    return scalars


def _per_sample(spent: Sequence[tuple[float, MeasuredGroup]]) -> float:
    return sum(seconds for seconds, _ in spent) / sum(group.rollout.num_samples for _, group in spent)
