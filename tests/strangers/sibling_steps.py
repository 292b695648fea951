"""D3PO (arXiv 2311.13231): sibling trajectories from one start are compared at every step, and the better one is preferred."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch.nn.functional as F

from drover.actors.sampler import Plain
from drover.actors.starts import SharedNoise
from drover.deploy.config import RunConfig
from drover.deploy.recipes.toy_ddpo import toy_ddpo
from drover.learner.examples import Credit, MeasuredGroup, StepBatch
from drover.learner.objective import BatchKind, LossOutput, Models, Needs


@dataclass(frozen=True, slots=True)
class D3po:
    """-log sigmoid(beta (log ratio of the better step - log ratio of the other)); the sampling policy is the reference."""

    reward: str
    beta: float
    learns_from: ClassVar[BatchKind] = StepBatch
    watched: ClassVar[tuple[str, ...]] = ("accuracy", "ratio")

    @property
    def needs(self) -> Needs:
        return Needs(rewards=(self.reward,), siblings=2)

    def credit(self, groups: Sequence[MeasuredGroup]) -> Credit:
        pairs = []
        for number, group in enumerate(groups):
            measured = group.rewards[self.reward]
            valid = np.flatnonzero(measured.valid)
            for one, other in zip(valid[::2], valid[1::2], strict=False):
                if measured.values[one] != measured.values[other]:
                    better, worse = sorted((one, other), key=lambda row: -measured.values[row])
                    pairs.append(((number, int(better)), (number, int(worse))))
        return Credit.pairs(pairs)

    def loss(self, models: Models, batch: StepBatch) -> LossOutput:
        policy = models.policy
        prediction = policy.predict(batch.x, batch.time, batch.cond)
        step = models.kernel.step(policy.schedule, batch.x, batch.time, batch.next_time, prediction)
        log_ratio = step.log_prob(batch.x_next, policy.parts) - batch.log_prob
        better, worse = log_ratio.chunk(2)
        z = self.beta * batch.weight * (better - worse)
        watched = {"accuracy": (z > 0).float().sum(), "ratio": log_ratio.detach().exp().sum() / 2}
        return LossOutput(-F.logsigmoid(z)[batch.weight != 0].sum(), watched)


def recipe(*, iterations: int = 40) -> RunConfig:
    """Of each two siblings the better one's steps become likelier."""
    config = replace(toy_ddpo(), iterations=iterations, samples=32, max_lag=0)
    return replace(
        config,
        recipe="sibling_steps",
        sampler=Plain(config.sampler.kernel, start=SharedNoise()),
        objective=D3po("point", beta=1.0),
    )
