"""A recipe whose roles sleep instead of computing, by given seconds, so that a small machine can run a large service."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from drover.deploy.config import Pools, RunConfig
from drover.deploy.recipes.toy_ddpo import toy_ddpo
from drover.learner.examples import Credit, MeasuredGroup, StepBatch
from drover.learner.objective import BatchKind, LossOutput, Models, Needs
from drover.learner.objectives.ddpo import Ddpo
from drover.reward_servers.rewards.toy_point import ToyPoint
from drover.worlds.plane.slow import Slow, SlowToy


def sleepers(
    *,
    rollout_s: float = 0.02,
    reward_s: float = 0.01,
    learn_s: float = 0.01,
    iterations: int = 30,
    groups: int = 4,
    samples: int = 8,
    max_lag: int = 1,
    actors: int = 1,
    reward_servers: int = 1,
    reward_batch: int = 64,
    seed: int = 0,
) -> RunConfig:
    """Train the toy chain with actors, rewards and a learner that sleep.

    Args:
        rollout_s: Seconds that an actor sleeps for each sample.
        reward_s: Seconds that a reward server sleeps for each sample.
        learn_s: Seconds that the learner sleeps for each sample.
        iterations: Iterations of the run.
        groups: Prompts per iteration.
        samples: Samples of each prompt.
        max_lag: Most versions by which the weights that sampled a group may be older than the trained ones.
        actors: Rollout processes.
        reward_servers: Processes of the reward.
        reward_batch: Samples of one call of the reward.
        seed: Seed of the noise.
    """
    config = toy_ddpo()
    (heldout,) = config.heldout
    return replace(
        config,
        recipe="sleepers",
        iterations=iterations,
        groups=groups,
        samples=samples,
        max_lag=max_lag,
        seed=seed,
        model=SlowToy(rollout_s),
        rewards=(Slow(ToyPoint(), reward_s),),
        objective=SleepyDdpo(Ddpo(weights={"point": 1.0}, clip=0.2, normalise="batch"), learn_s),
        heldout=(replace(heldout, samples_per_prompt=samples),),
        pools=Pools(actors=actors, reward_servers=reward_servers, reward_batch=reward_batch),
        checkpoint_every=10**6,
    )


@dataclass(frozen=True)
class SleepyDdpo:
    """DDPO that sleeps ``sample_s`` seconds for each sample when it computes the credit of an iteration."""

    ddpo: Ddpo
    sample_s: float

    learns_from: ClassVar[BatchKind] = StepBatch
    watched: ClassVar[tuple[str, ...]] = Ddpo.watched

    @property
    def needs(self) -> Needs:
        return self.ddpo.needs

    def credit(self, groups: Sequence[MeasuredGroup]) -> Credit:
        time.sleep(self.sample_s * sum(group.rollout.num_samples for group in groups))
        return self.ddpo.credit(groups)

    def loss(self, models: Models, batch: StepBatch) -> LossOutput:
        return self.ddpo.loss(models, batch)
