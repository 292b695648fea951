"""The shortest sampling loop, for tests."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from drover.common.diffusion.gaussian import Gaussian
from drover.common.protocols import Conditioning, Kernel, Policy

PROMPTS = ("a red circle", "two blue squares", "a red circle")


def start(policy: Policy, count: int, seed: int = 0) -> Tensor:
    """[B, *latent] standard normal."""
    return torch.randn(count, *policy.latent_shape, generator=torch.Generator().manual_seed(seed))


def distribution(policy: Policy, kernel: Kernel, x: Tensor, step: int, cond: Conditioning) -> Gaussian:
    """The Gaussian of one step of all rows."""
    times = kernel.times(policy.schedule)
    time, next_time = (torch.full((len(x),), times[index]) for index in (step, step + 1))
    return kernel.step(policy.schedule, x, time, next_time, policy.predict(x, time, cond))


@torch.no_grad()
def walk(
    policy: Policy, kernel: Kernel, x: Tensor, cond: Conditioning, seed: int = 1
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """(step, state, next state, log-prob [B, 1], or zeros where the kernel is deterministic)."""
    draws = torch.Generator().manual_seed(seed)
    for step in range(kernel.num_steps):
        gaussian = distribution(policy, kernel, x, step, cond)
        drawn = gaussian.sample(torch.randn(x.shape, generator=draws))
        yield step, x, drawn, gaussian.log_prob(drawn) if kernel.stochastic else torch.zeros(len(x), 1)
        x = drawn
