"""A clipped policy gradient with the KL of every step to a frozen reference, in closed form (arXiv 2305.16381, DPOK)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from drover.deploy.config import RunConfig
from drover.deploy.recipes.toy_ddpo import toy_ddpo
from drover.learner.examples import Credit, MeasuredGroup, StepBatch
from drover.learner.objective import BatchKind, LossOutput, Models, Needs
from drover.learner.objectives.ddpo import Ddpo
from drover.learner.reference import FrozenCopy


@dataclass(frozen=True, slots=True)
class WithKl:
    """``ddpo`` plus ``beta`` x KL(policy step || reference step), nats per latent dimension."""

    ddpo: Ddpo
    beta: float
    learns_from: ClassVar[BatchKind] = StepBatch
    watched: ClassVar[tuple[str, ...]] = (*Ddpo.watched, "kl")

    @property
    def needs(self) -> Needs:
        return replace(self.ddpo.needs, reference=True)

    def credit(self, groups: Sequence[MeasuredGroup]) -> Credit:
        return self.ddpo.credit(groups)

    def loss(self, models: Models, batch: StepBatch) -> LossOutput:
        assert models.reference is not None
        mine, reference = (
            models.kernel.step(
                model.schedule, batch.x, batch.time, batch.next_time, model.predict(batch.x, batch.time, batch.cond)
            )
            for model in (models.policy, models.reference)
        )
        kl = mine.kl(reference, batch.weight.shape[1])
        given = self.ddpo.loss(models, batch)
        counts = (batch.weight != 0).float()
        watched = {**given.watched, "kl": (counts * kl).detach().mean(dim=1).sum()}
        return LossOutput(given.total + self.beta * (counts * kl).sum(), watched)


def recipe(*, beta: float = 100.0, iterations: int = 30, learner_ranks: int = 1, actors: int = 1) -> RunConfig:
    """The larger ``beta``, the less the toy's end point moves."""
    config = replace(toy_ddpo(), iterations=iterations, samples=32, max_lag=0)
    return replace(
        config,
        recipe="kl_to_reference",
        objective=WithKl(Ddpo(weights={"point": 1.0}, clip=0.2, normalise="batch"), beta),
        reference=FrozenCopy(),
        pools=replace(config.pools, learner_ranks=learner_ranks, actors=actors),
    )
