"""Classifier-free guidance around any policy, the same when sampling and when training.

Training the conditional branch alone lets the guidance scale lose its calibration and performance collapses after the
first round (DDPO, arXiv 2305.13301, appendix E.1); hence a wrapper, which no role can leave out by half.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from drover.common.errors import ConfigError
from drover.common.media.media import Media
from drover.common.policies.conditioning import concat
from drover.common.protocols import Conditioning, Policy, Prediction, Schedule

UNCONDITIONAL = "uncond."  # before the name of each tensor of the empty prompt


class Guided:
    """``Guided(policy, scale=5.0)``: uncond + scale x (cond - uncond), in one doubled forward.

    Guidance multiplies the noise between two evaluations of the branches by up to sqrt(scale^2 + (scale - 1)^2).
    """

    def __init__(self, policy: Policy, scale: float) -> None:
        if scale == 1:
            raise ConfigError("a guidance scale of 1 is no guidance at twice the price; use the policy without Guided")
        self.policy = policy
        self.scale = scale
        self.schedule: Schedule = policy.schedule
        self.latent_shape = policy.latent_shape
        self._empty: Conditioning | None = None

    @property
    def trainable(self) -> nn.Module:
        return self.policy.trainable

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """The policy's rows, and beside each the empty prompt's under "uncond.<name>", as views of one row."""
        if self._empty is None:
            self._empty = self.policy.encode([""])
        count = len(prompts)
        empty = {f"{UNCONDITIONAL}{name}": row.expand(count, *row.shape[1:]) for name, row in self._empty.items()}
        return {**self.policy.encode(prompts), **empty}

    def predict(self, x: Tensor, time: Tensor, cond: Conditioning) -> Prediction:
        with_prompt = _conditional(cond)
        without = {name: cond[f"{UNCONDITIONAL}{name}"] for name in with_prompt}
        both = self.policy.predict(torch.cat([x, x]), torch.cat([time, time]), concat([without, with_prompt]))
        return Prediction(x0=self._combine(both.x0), noise=self._combine(both.noise))

    def decode(self, x0: Tensor, cond: Conditioning) -> Media:
        return self.policy.decode(x0, _conditional(cond))

    def to_latents(self, media: Media) -> Tensor:
        return self.policy.to_latents(media)

    def denoising_loss(self, x0: Tensor, noise: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        """The policy's own, given the prompts: guidance combines two denoisers and is none itself."""
        return self.policy.denoising_loss(x0, noise, time, _conditional(cond))

    def _combine(self, both: Tensor) -> Tensor:
        """x0 and noise are linear in the network's output, so guiding them is guiding it."""
        uncond, cond = both.chunk(2)
        return uncond + self.scale * (cond - uncond)


def _conditional(cond: Conditioning) -> Conditioning:
    return {name: tensor for name, tensor in cond.items() if not name.startswith(UNCONDITIONAL)}
