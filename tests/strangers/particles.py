"""Particles resampled by a reward in the middle of their trajectories (FK steering, arXiv 2501.06848), as a sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from drover.actors.sampler import Plain, advance, stored
from drover.common import seeds
from drover.common.diffusion.chain import Chain
from drover.common.protocols import Conditioning, Draws, Kernel, Policy, Reward
from drover.deploy.config import RunConfig
from drover.deploy.recipes.toy_ddpo import toy_ddpo
from drover.reward_servers.rewards.toy_point import ToyPoint


@dataclass(frozen=True, slots=True)
class Steered:
    """After each step but the last, the samples of the batch are drawn anew among themselves, by exp(reward / temperature)."""

    kernel: Kernel
    reward: Reward
    temperature: float
    guidance: None = None

    def load(self, policy: Policy, device: str) -> SteeredSampling:
        return SteeredSampling(self, policy, self.reward.load(device))


class SteeredSampling:
    def __init__(self, spec: Steered, policy: Policy, score) -> None:
        self.policy, self._spec, self._score = policy, spec, score

    @torch.no_grad()
    def __call__(
        self, cond: Conditioning, draws: Draws, *, prompts: Sequence[str], record: Sequence[int], storage: torch.dtype
    ) -> Chain:
        policy, kernel = self.policy, self._spec.kernel
        x = stored(seeds.normal(policy.latent_shape, draws.own), storage)
        for i in range(kernel.num_steps):
            noise = seeds.normal(policy.latent_shape, draws.own)
            _, x_next, prediction = advance(policy, kernel, x, i, cond, noise)
            x = stored(x_next, storage)
            if i < kernel.num_steps - 1:
                values = torch.tensor(self._score(prompts, policy.decode(prediction.x0, cond)).values)
                chosen = torch.multinomial(
                    torch.softmax(values / self._spec.temperature, 0), len(x), replacement=True, generator=draws.own[0]
                )
                x = x[chosen]
        return Chain(kernel.times(policy.schedule), x, {}, {})


def recipe(*, steered: bool = True) -> RunConfig:
    """The held-out set is drawn with particles; training uses the toy's usual sampler."""
    config = replace(toy_ddpo(), iterations=1, samples=8, max_lag=0)
    kernel = config.sampler.kernel
    sampler = Steered(kernel, ToyPoint(), temperature=2.0) if steered else Plain(kernel)
    held = replace(config.heldout[0], samples_per_prompt=256, sampler=sampler)
    return replace(config, recipe="particles", heldout=(held,))
