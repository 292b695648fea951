"""Put classifier-free guidance around any policy, the same when sampling and when training.

If only the conditional branch is trained, the guidance scale loses its calibration and performance collapses after the
first round (DDPO, arXiv 2305.13301, appendix E.1). A wrapper around the policy makes all roles use the same guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from drover.common.errors import ConfigError
from drover.common.media.media import Media
from drover.common.policies.conditioning import concat
from drover.common.policies.wrapped import Wrapped
from drover.common.protocols import Conditioning, Policy, Prediction

if TYPE_CHECKING:
    from torch import Tensor

UNCONDITIONAL = "uncond."  # the prefix of each tensor's name of the empty condition


class Guided(Wrapped):
    """A policy that predicts uncond + scale x (cond - uncond), in one doubled forward: ``Guided(policy, scale=5.0)``.

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
        """The policy's rows, and beside them the empty condition's under "uncond.<name>", as views of one row."""
        if self._empty is None:
            self._empty = self.policy.encode([self._empty_name])
        count = len(names)
        empty = {f"{UNCONDITIONAL}{name}": row.expand(count, *row.shape[1:]) for name, row in self._empty.items()}
        return {**self.policy.encode(names), **empty}

    def predict(self, x: Tensor, time: Tensor, cond: Conditioning) -> Prediction:
        import torch

        with_prompt = _conditional(cond)
        without = {name: cond[f"{UNCONDITIONAL}{name}"] for name in with_prompt}
        both = self.policy.predict(torch.cat([x, x]), torch.cat([time, time]), concat([without, with_prompt]))
        return Prediction(x0=self._combine(both.x0), noise=self._combine(both.noise))

    def output(self, x: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        """The policy's own output under the condition: guidance combines two denoisers and is none itself."""
        return self.policy.output(x, time, _conditional(cond))

    def decode(self, x0: Tensor, cond: Conditioning) -> Media:
        return self.policy.decode(x0, _conditional(cond))

    def _combine(self, both: Tensor) -> Tensor:
        """Guide x0 or noise, which equals guiding the network's output, because they are linear in it."""
        uncond, cond = both.chunk(2)
        return uncond + self.scale * (cond - uncond)


def guided(policy: Policy, scale: float) -> Policy:
    """The policy with guidance of that scale instead of its own; 1 is none. The modules are shared."""
    bare = policy.policy if isinstance(policy, Guided) else policy
    return bare if scale == 1 else Guided(bare, scale)


def _conditional(cond: Conditioning) -> Conditioning:
    return {name: tensor for name, tensor in cond.items() if not name.startswith(UNCONDITIONAL)}
