"""Online Diffusion-DPO (arXiv 2311.12908): of each prompt's samples the best is preferred to the worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from drover.common import seeds
from drover.common.diffusion.error import per_part, squared_error
from drover.common.diffusion.time_laws import TimeLaw, Uniform
from drover.deploy.config import RunConfig
from drover.deploy.recipes.toy_ddpo import toy_ddpo
from drover.learner.examples import Credit, LatentBatch, MeasuredGroup
from drover.learner.objective import BatchKind, LossOutput, Models, Needs
from drover.learner.reference import FrozenCopy


@dataclass(frozen=True, slots=True, kw_only=True)
class Dpo:
    """``beta`` multiplies the difference of error differences. Both samples of a pair get the same noise and time."""

    reward: str
    beta: float
    times: TimeLaw = field(default_factory=Uniform)
    learns_from: ClassVar[BatchKind] = LatentBatch
    watched: ClassVar[tuple[str, ...]] = ("accuracy",)

    @property
    def needs(self) -> Needs:
        return Needs(rewards=(self.reward,), siblings=2, reference=True)

    def credit(self, groups: Sequence[MeasuredGroup]) -> Credit:
        pairs = []
        for number, group in enumerate(groups):
            measured = group.rewards[self.reward]
            values = np.where(measured.valid, measured.values, np.nan)
            if measured.valid.sum() >= 2 and np.nanmax(values) > np.nanmin(values):
                order = np.argsort(values)[: measured.valid.sum()]
                half = len(order) // 4  # the better quarter against the worse one
                pairs += [((number, int(b)), (number, int(w))) for b, w in zip(order[::-1], order[:half], strict=False)]
        return Credit.pairs(pairs)

    def loss(self, models: Models, batch: LatentBatch) -> LossOutput:
        assert models.reference is not None
        half = len(batch.weight)
        draws = [*batch.draws[:half]]
        time = self.times.draw(models.policy.schedule, draws).repeat(2)
        noise = seeds.normal(models.policy.latent_shape, draws).repeat(2, 1)
        now, before = (self.error(m, batch, noise, time) for m in (models.policy, models.reference))
        better, worse = (now - before).chunk(2)
        z = -self.beta * batch.weight * (better - worse)
        known = batch.weight != 0
        return LossOutput(-F.logsigmoid(z)[known].sum(), {"accuracy": (z[known] > 0).float().sum()})

    def error(self, policy, batch: LatentBatch, noise: Tensor, time: Tensor) -> Tensor:
        return per_part(squared_error(policy, batch.x0, noise, time, batch.cond), batch.weight.shape[1])


def recipe(*, iterations: int = 30, learner_ranks: int = 1, actors: int = 1) -> RunConfig:
    """DPO moves the toy's end point towards (-1, 1)."""
    config = replace(toy_ddpo(), iterations=iterations, samples=32, max_lag=0)
    return replace(
        config,
        recipe="latent_pairs",
        objective=Dpo(reward="point", beta=1.0),
        record=None,
        reference=FrozenCopy(),
        pools=replace(config.pools, learner_ranks=learner_ranks, actors=actors),
    )
