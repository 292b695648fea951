"""Compute means and costs of an iteration's rewards, by name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drover.learner.examples import MeasuredGroup


def rewards_by_name(groups: Sequence[MeasuredGroup]) -> dict[str, float]:
    """``reward/NAME/mean|std|valid_share`` over an iteration's samples."""
    scalars = {}
    for name in _names(groups):
        mine = [group.rewards[name] for group in groups if name in group.rewards]
        values = np.concatenate([measured.values for measured in mine])
        valid = np.concatenate([measured.valid for measured in mine])
        scalars[f"reward/{name}/valid_share"] = float(valid.mean())
        if valid.any():
            scalars[f"reward/{name}/mean"] = float(values[valid].mean())
            scalars[f"reward/{name}/std"] = float(values[valid].std())
    return scalars


def costs(groups: Sequence[MeasuredGroup]) -> dict[str, float]:
    """``cost/rollout/s_per_sample`` and ``cost/reward/NAME/s_per_sample``: seconds of one worker's time over an iteration."""
    if not groups:
        return {}
    scalars = {"cost/rollout/s_per_sample": _per_sample([(group.rollout.sampling_s, group) for group in groups])}
    for name in _names(groups):
        mine = [(group.rewards[name].scoring_s, group) for group in groups if name in group.rewards]
        scalars[f"cost/reward/{name}/s_per_sample"] = _per_sample(mine)
    return scalars


def _names(groups: Sequence[MeasuredGroup]) -> list[str]:
    return list(dict.fromkeys(name for group in groups for name in group.rollout.rewards))


def _per_sample(spent: Sequence[tuple[float, MeasuredGroup]]) -> float:
    return sum(seconds for seconds, _ in spent) / sum(group.rollout.num_samples for _, group in spent)
