"""Compute losses as functions of tensors. They return sums; the loop divides once by the global count."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def clipped_ratio(log_ratio: Tensor, weight: Tensor, *, clip: float) -> Tensor:
    """[B] PPO's clipped surrogate to minimise: max(-w r, -w clamp(r, 1 - clip, 1 + clip)), r = exp(log_ratio)."""
    ratio = log_ratio.exp()
    return (-weight * ratio).maximum(-weight * ratio.clamp(1 - clip, 1 + clip))
