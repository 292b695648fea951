"""DDPO: denoising as a decision process, each step a Gaussian action, trained with a clipped policy gradient.

Source: "Training Diffusion Models with Reinforcement Learning", arXiv 2305.13301 (DDPO-IS). ``normalise="group"`` takes
the advantage among the samples of one prompt, ``"batch"`` among all of the iteration (arXiv 2401.12244, eq. 10),
``"centred"`` subtracts the mean of the prompt and divides by the deviation that is common to all prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from drover.common.errors import ConfigError
from drover.learner.advantages import standardise, standardise_centred
from drover.learner.examples import Credit, MeasuredGroup, StepBatch
from drover.learner.losses import clipped_ratio
from drover.learner.objective import BatchKind, LossOutput, Models, Needs


@dataclass(frozen=True, slots=True, kw_only=True)
class Ddpo:
    """Policy gradient on recorded denoising steps, with advantages as credit.

    ``clip`` bounds the ratio of MEAN log-probs, so it shrinks with the latent: about 1.64 / latent dimensions.
    ``weights`` maps a reward's name to the factor of its advantages; every reward is standardised on its own first, so its
    unit and scale do not matter. A sample counts only if every one of these rewards is valid for it.
    """

    weights: Mapping[str, float]
    clip: float
    normalise: Literal["group", "batch", "centred"] = "group"
    advantage_clip: float = 10.0
    rewards: tuple[str, ...] = field(init=False)
    learns_from: ClassVar[BatchKind] = StepBatch
    watched: ClassVar[tuple[str, ...]] = ("ratio", "clip_fraction", "approx_kl")

    def __post_init__(self) -> None:
        if not self.weights or not self.clip > 0 or not self.advantage_clip > 0:
            raise ConfigError(
                f"Ddpo needs at least one reward and positive clips, got weights={dict(self.weights)}, "
                f"clip={self.clip}, advantage_clip={self.advantage_clip}"
            )
        object.__setattr__(self, "rewards", tuple(self.weights))

    @property
    def needs(self) -> Needs:
        """The named rewards, and at least two samples of a prompt where advantages are taken among them."""
        return Needs(rewards=self.rewards, siblings=1 if self.normalise == "batch" else 2)

    def credit(self, groups: Sequence[MeasuredGroup]) -> Credit:
        measured = [[group.rewards[name] for name in self.rewards] for group in groups]
        counted = [np.logical_and.reduce([one.valid for one in rewards]) for rewards in measured]
        advantages = [np.zeros(known.shape) for known in counted]
        for name, weight in self.weights.items():
            for total, one in zip(advantages, self._standardised(groups, name, counted), strict=True):
                total += weight * one
        return Credit.per_sample(advantages, counted)

    def _standardised(
        self, groups: Sequence[MeasuredGroup], name: str, counted: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """[N] advantages of each group, for one reward."""
        values, clip = [group.rewards[name].values for group in groups], self.advantage_clip
        if self.normalise == "group":
            return [standardise(v, known, clip=clip) for v, known in zip(values, counted, strict=True)]
        if self.normalise == "centred":
            return standardise_centred(values, list(counted), clip=clip)
        ends = np.cumsum([len(v) for v in values])[:-1]
        return np.split(standardise(np.concatenate(values), np.concatenate(counted), clip=clip), ends)

    def loss(self, models: Models, batch: StepBatch) -> LossOutput:
        policy, parts = models.policy, batch.weight.shape[1]
        prediction = policy.predict(batch.x, batch.time, batch.cond)
        step = models.kernel.step(policy.schedule, batch.x, batch.time, batch.next_time, prediction)
        log_ratio = step.log_prob(batch.x_next, parts) - batch.log_prob
        loss = clipped_ratio(log_ratio, batch.weight, clip=self.clip)
        known = log_ratio.detach()
        ratio = known.exp()
        return LossOutput(
            total=loss.sum(),
            watched={
                "ratio": ratio.mean(dim=1).sum(),
                "clip_fraction": ((ratio - 1).abs() > self.clip).float().mean(dim=1).sum(),
                "approx_kl": (0.5 * known.square()).mean(dim=1).sum(),
            },
        )
