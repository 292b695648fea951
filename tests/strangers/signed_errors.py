"""DRO, the form of DSO without pairs (arXiv 2503.22677): a signed weight on the denoising error of each sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from drover.common import seeds
from drover.common.diffusion.error import per_part, squared_error
from drover.common.diffusion.time_laws import Uniform
from drover.deploy.config import RunConfig
from drover.deploy.recipes.toy_ddpo import toy_ddpo
from drover.learner.examples import Credit, LatentBatch, MeasuredGroup
from drover.learner.objective import BatchKind, LossOutput, Models, Needs


@dataclass(frozen=True, slots=True)
class SignedErrors:
    """Samples above the median of their prompt pull the denoiser, the others push it with ``push`` of that strength."""

    reward: str
    push: float = 0.5
    learns_from: ClassVar[BatchKind] = LatentBatch
    watched: ClassVar[tuple[str, ...]] = ("error",)

    @property
    def needs(self) -> Needs:
        return Needs(rewards=(self.reward,), siblings=2, draws=2)

    def credit(self, groups: Sequence[MeasuredGroup]) -> Credit:
        measured = [group.rewards[self.reward] for group in groups]
        weights = [
            np.where(one.valid, np.where(one.values > np.median(one.values[one.valid]), 1.0, -self.push), 0.0)
            for one in measured
        ]
        return Credit.per_sample(weights, [one.valid for one in measured])

    def loss(self, models: Models, batch: LatentBatch) -> LossOutput:
        time = Uniform().draw(models.policy.schedule, batch.draws)
        noise = seeds.normal(models.policy.latent_shape, batch.draws)
        error = per_part(squared_error(models.policy, batch.x0, noise, time, batch.cond), batch.weight.shape[1])
        return LossOutput((batch.weight * error).sum(), {"error": error.detach().mean(dim=1).sum()})


def recipe(*, iterations: int = 30, learner_ranks: int = 1, actors: int = 1) -> RunConfig:
    """Signed denoising errors move the toy's end point towards (-1, 1)."""
    config = replace(toy_ddpo(), iterations=iterations, samples=32, max_lag=0)
    return replace(
        config,
        recipe="signed_errors",
        objective=SignedErrors("point"),
        record=None,
        pools=replace(config.pools, learner_ranks=learner_ranks, actors=actors),
    )
