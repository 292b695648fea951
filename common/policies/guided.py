"""Classifier-free guidance around any policy, the same when sampling and when training.

Training the conditional branch alone lets the guidance scale lose its calibration and performance collapses after the
first round (DDPO, arXiv 2305.13301, appendix E.1); hence a wrapper, which no role can leave out by half.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from drover.common.errors import ConfigError
from drover.common.media.media import Media
from drover.common.policies.conditioning import concat
from drover.common.policies.wrapped import Wrapped
from drover.common.protocols import Conditioning, Policy, Prediction

UNCONDITIONAL = "uncond."  # before the name of each tensor of the empty condition


class Guided(Wrapped):
    """``Guided(policy, scale=5.0)``: uncond + scale x (cond - uncond), in one doubled forward.

    Guidance multiplies the noise between two evaluations of the branches by up to sqrt(scale^2 + (scale - 1)^2).
    """

    def __init__(self, policy: Policy, scale: float) -> None:
        if scale == 1:
            raise ConfigError("a guidance scale of 1 is no guidance at twice the price; use the policy without Guided")
        if policy.empty is None:
            raise ConfigError(
                "this model is told its guidance scale and has no empty condition to be guided away from; set the scale "
                "as the guidance of the model, and none for the sampler"
            )
        super().__init__(policy)
        self.scale = scale
        self._empty_name = policy.empty
        self._empty: Conditioning | None = None

    def encode(self, names: Sequence[str]) -> Conditioning:
        """The policy's rows, and beside each the empty condition's under "uncond.<name>", as views of one row."""
        if self._empty is None:
            self._empty = self.policy.encode([self._empty_name])
        count = len(names)
        empty = {f"{UNCONDITIONAL}{name}": row.expand(count, *row.shape[1:]) for name, row in self._empty.items()}
        return {**self.policy.encode(names), **empty}

    def predict(self, x: Tensor, time: Tensor, cond: Conditioning) -> Prediction:
        with_prompt = _conditional(cond)
        without = {name: cond[f"{UNCONDITIONAL}{name}"] for name in with_prompt}
        both = self.policy.predict(torch.cat([x, x]), torch.cat([time, time]), concat([without, with_prompt]))
        return Prediction(x0=self._combine(both.x0), noise=self._combine(both.noise))

    def output(self, x: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        """The policy's own, given the condition: guidance combines two denoisers and is none itself."""
        return self.policy.output(x, time, _conditional(cond))

    def decode(self, x0: Tensor, cond: Conditioning) -> Media:
        return self.policy.decode(x0, _conditional(cond))

    def _combine(self, both: Tensor) -> Tensor:
        """x0 and noise are linear in the network's output, so guiding them is guiding it."""
        uncond, cond = both.chunk(2)
        return uncond + self.scale * (cond - uncond)


def guided(policy: Policy, scale: float) -> Policy:
    """The policy under guidance of that scale instead of its own, sharing its modules; 1 is none."""
    bare = policy.policy if isinstance(policy, Guided) else policy
    return bare if scale == 1 else Guided(bare, scale)


def _conditional(cond: Conditioning) -> Conditioning:
    return {name: tensor for name, tensor in cond.items() if not name.startswith(UNCONDITIONAL)}
