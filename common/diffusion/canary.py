"""Compute the canary: a number that changes with the weights and shows that an actor loaded the published ones."""

from __future__ import annotations

import torch

from drover.common import seeds
from drover.common.protocols import Policy


@torch.no_grad()
def canary(policy: Policy, condition: str, device: str) -> float:
    """Root mean square distance from fixed noise to the noise that the policy predicts, at a fixed x halfway along its path.

    ``condition`` is a name that the policy can encode: the first of the run. No density is needed. By the triangle
    inequality the number changes by at most the root mean square change of the predicted noise, which has size 1.
    """
    drawn = seeds.generators(0, "canary", 0, (0, 1))
    x, fixed = (seeds.normal(policy.latent_shape, [generator]).to(device) for generator in drawn)
    time = torch.full((1,), policy.schedule.num_times // 2, device=device)
    predicted = policy.predict(x, time, policy.encode([condition])).noise
    return (predicted - fixed).square().mean().sqrt().item()
