"""Turn raw values of rewards into advantages, purely and in double precision. Invalid values are ignored and get 0."""

from __future__ import annotations

import numpy as np

EPSILON = 1e-7  # added to the standard deviation, so that nearly equal rewards give small numbers and not NaN


def standardise(values: np.ndarray, valid: np.ndarray, *, clip: float) -> np.ndarray:
    """[N] z-scores over the valid entries (unbiased deviation), cut at +-clip; 0 where invalid, or fewer than two are valid.

    Source: arXiv 2401.12244 section 3.2 and its released code (deviation, not the variance that its eq. 10 prints).
    """
    advantages = np.zeros(values.shape)
    known = values[valid].astype(np.float64)
    if len(known) >= 2 and np.ptp(known) > 0:  # equal values less their mean leave rounding, not 0
        advantages[valid] = np.clip((known - known.mean()) / (known.std(ddof=1) + EPSILON), -clip, clip)
    return advantages


def standardise_centred(groups: list[np.ndarray], valid: list[np.ndarray], *, clip: float) -> list[np.ndarray]:
    """Per group [N]: values minus the group's mean, over the pooled deviation of all groups around their own means.

    A group whose samples are all nearly equal then has small advantages, where its own deviation would magnify
    differences that may be noise. Cut at +-clip; 0 where invalid, or fewer than two of the group are valid.
    """
    centred = [np.zeros(values.shape) for values in groups]
    for out, values, known in zip(centred, groups, valid, strict=True):
        counted = values[known].astype(np.float64)
        if len(counted) >= 2 and np.ptp(counted) > 0:  # as above
            out[known] = counted - counted.mean()
    degrees = sum(int(known.sum()) - 1 for known in valid if known.sum() >= 2)
    deviation = np.sqrt(sum(float((out**2).sum()) for out in centred) / max(1, degrees))
    return [np.clip(out / (deviation + EPSILON), -clip, clip) for out in centred]
