"""DDPO: denoising as a decision process, each step a Gaussian action, trained with a clipped policy gradient.

Source: "Training Diffusion Models with Reinforcement Learning", arXiv 2305.13301 (DDPO-IS). ``normalise="group"`` takes
the advantage among the samples of one prompt, ``"batch"`` among all of the iteration (arXiv 2401.12244, eq. 10).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from common.errors import ConfigError
from common.protocols import Kernel, Policy
from learner.advantages import standardise
from learner.examples import Credit, MeasuredGroup, StepBatch
from learner.losses import clipped_ratio
from learner.objective import LossOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class Ddpo:
    """``clip`` bounds the ratio of MEAN log-probs, so it shrinks with the latent: about 1.64 / latent dimensions.

    ``weights`` says what each reward counts, by name; every reward is standardised on its own first, so its unit and
    scale do not matter. A sample counts only if every one of these rewards is valid for it.
    """

    weights: Mapping[str, float]
    clip: float
    normalise: Literal["group", "batch"] = "group"
    advantage_clip: float = 10.0
    rewards: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not self.weights or not self.clip > 0 or not self.advantage_clip > 0:
            raise ConfigError(
                f"Ddpo needs at least one reward and positive clips, got weights={dict(self.weights)}, "
                f"clip={self.clip}, advantage_clip={self.advantage_clip}"
            )
        object.__setattr__(self, "rewards", tuple(self.weights))

    def credit(self, groups: Sequence[MeasuredGroup]) -> list[Credit]:
        if self.normalise == "group":
            return [credit for group in groups for credit in self._judge([group])]
        return self._judge(groups)

    def _judge(self, groups: Sequence[MeasuredGroup]) -> list[Credit]:
        """Credits of groups whose samples are standardised together."""
        counted = np.concatenate([np.logical_and.reduce([g.valid(name) for name in self.rewards]) for g in groups])
        advantages = np.zeros(counted.shape)
        for name, weight in self.weights.items():
            values = np.concatenate([group.values(name) for group in groups])
            advantages += weight * standardise(values, counted, clip=self.advantage_clip)
        ends = np.cumsum([group.rollout.num_samples for group in groups])[:-1]
        return [Credit(a, c) for a, c in zip(np.split(advantages, ends), np.split(counted, ends), strict=True)]

    def loss(self, policy: Policy, kernel: Kernel, batch: StepBatch) -> LossOutput:
        prediction = policy.predict(batch.x, batch.time, batch.cond)
        step = kernel.step(policy.schedule, batch.x, batch.time, batch.next_time, prediction)
        log_ratio = step.log_prob(batch.x_next) - batch.log_prob
        loss = clipped_ratio(log_ratio, batch.weight, clip=self.clip)
        known = log_ratio.detach()
        ratio = known.exp()
        return LossOutput(
            total=loss.sum(),
            watched={
                "ratio": ratio.sum(),
                "clip_fraction": ((ratio - 1).abs() > self.clip).float().sum(),
                "approx_kl": (0.5 * known.square()).sum(),
            },
        )
