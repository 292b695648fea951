"""Compute the denoising error of a policy, and means over the parts of a sample.

A part of a sample is an index of its first latent axis: a frame of a clip, an agent of a scene. A sample that is judged as
a whole has one part. Axes: B batch, S parts, ... latent axes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from drover.common.diffusion.noising import corrupt
from drover.common.protocols import Conditioning, Policy

if TYPE_CHECKING:
    from torch import Tensor


def squared_error(policy: Policy, x0: Tensor, noise: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
    """[B, ...] (output - target)^2 of the policy's network at the noised latents, in the form of its pretraining.

    Without guidance, with gradient, float32. Raises `ConfigError` for a policy that was not trained to denoise.
    """
    target = policy.target(x0, noise, time)
    output = policy.output(corrupt(policy.schedule, x0, noise, time), time, cond)
    return (output - target).square()


def per_part(values: Tensor, parts: int = 1) -> Tensor:
    """[B, S] means of values [B, ...] over each of S = ``parts`` parts.

    ``parts`` is 1, or the size of the first latent axis. Raises ValueError for any other number.
    """
    if parts not in (1, values.shape[1]):
        raise ValueError(f"a sample {list(values.shape[1:])} has 1 part or {values.shape[1]}, not {parts}")
    return values.flatten(start_dim=1).unflatten(1, (parts, -1)).mean(dim=2)
