"""A number that changes with the weights: how a receiver proves that what it loaded is what was published."""

from __future__ import annotations

import torch

from drover.common import seeds
from drover.common.protocols import Kernel, Policy


@torch.no_grad()
def canary_log_prob(policy: Policy, kernel: Kernel, device: str) -> float:
    """Log-prob (mean nats per latent dimension) of a fixed transition at the middle step, for a fixed prompt.

    The transition does not depend on the weights, so the number moves exactly when the policy's prediction does.
    """
    times = kernel.times(policy.schedule)
    middle = kernel.num_steps // 2
    noise = seeds.generators(0, "canary", 0, (0, 1))
    x, x_next = (seeds.normal(policy.latent_shape, [generator]).to(device) for generator in noise)
    time, next_time = (torch.tensor([t], device=device) for t in times[middle : middle + 2])
    step = kernel.step(policy.schedule, x, time, next_time, policy.predict(x, time, policy.encode(["canary"])))
    return step.log_prob(x_next).item()
