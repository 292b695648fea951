"""The error of a network's output, the loss of denoising, per part."""

from __future__ import annotations

from torch import Tensor

from drover.common.diffusion.noising import corrupt
from drover.common.protocols import Conditioning, Policy


def squared_error(policy: Policy, x0: Tensor, noise: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
    """[B, *latent] (output - target)^2."""
    output = policy.output(corrupt(policy.schedule, x0, noise, time), time, cond)
    return (output - policy.target(x0, noise, time)).square()


def per_part(error: Tensor, parts: int) -> Tensor:
    """[B, S] means."""
    return error.reshape(len(error), parts, -1).mean(dim=2)
