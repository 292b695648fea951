"""Raw values to advantages. Pure, double precision; what is not valid takes part in nothing and gets 0."""

from __future__ import annotations

import numpy as np

EPSILON = 1e-7  # added to the standard deviation, so that equal rewards give 0 and not NaN


def standardise(values: np.ndarray, valid: np.ndarray, *, clip: float) -> np.ndarray:
    """[N] z-scores over the valid entries (unbiased deviation), cut at +-clip; 0 where invalid, or fewer than two are valid.

    Source: arXiv 2401.12244 section 3.2 and its released code (deviation, not the variance that its eq. 10 prints).
    """
    advantages = np.zeros(values.shape)
    if valid.sum() >= 2:
        known = values[valid].astype(np.float64)
        advantages[valid] = np.clip((known - known.mean()) / (known.std(ddof=1) + EPSILON), -clip, clip)
    return advantages
