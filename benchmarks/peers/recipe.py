"""A drover recipe with the setting of TRL's benchmark: 10 steps, 5 trained, batches of 8, full fine-tune, JPEG size."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from drover.common.media.media import Media
from drover.common.prompts import Prompt
from drover.common.protocols import Reward, Scorer, Scores, SetScorer
from drover.deploy.config import Pools, RunConfig
from drover.deploy.options import Training
from drover.deploy.recipes.shapes import shapes_ddpo
from drover.learner.intake.evaluation import EvaluationSpec
from drover.learner.intake.tasks import RecordSteps, Task
from drover.learner.spec import OptimizerSpec
from drover.reward_servers.rewards.jpeg_size import JpegSize
from drover.worlds.shapes.prompts import HELDOUT_KINDS, KINDS, kind_prompt

PROMPTS = tuple(kind_prompt(kind) for kind in KINDS if kind not in HELDOUT_KINDS)
BATCH = 8


@dataclass(frozen=True, slots=True)
class Sleeping:
    """A reward that sleeps ``seconds`` for each image before it scores, as if its scorer were on another machine."""

    reward: Reward
    seconds: float

    @property
    def name(self) -> str:
        return self.reward.name

    @property
    def takes(self) -> type[Media]:
        return self.reward.takes

    def load(self, device: str) -> Scorer:
        scorer = self.reward.load(device)
        assert not isinstance(scorer, SetScorer)

        def score(prompts: Sequence[Prompt], media: Media) -> Scores:
            time.sleep(self.seconds * len(media))
            return scorer(prompts, media)

        return score


def peer_setting(
    *,
    iterations: int = 60,
    reward_sleep_s: float = 0.0,
    max_lag: int = 1,
    actors: int = 1,
    learner_ranks: int = 1,
    learner_threads: int = 1,
    reward_loops: int = 1,
    lr: float = 1e-4,
    seed: int = 0,
) -> RunConfig:
    """Train in the setting in which TRL's DDPOTrainer is measured: one optimiser step for every 8 samples.

    Args:
        iterations: Optimiser steps.
        reward_sleep_s: Seconds that the reward sleeps for each image.
        max_lag: Most versions by which the weights that sampled a group may be older than the trained ones.
        actors: Rollout processes of one thread.
        learner_ranks: FSDP ranks.
        learner_threads: CPU threads of each rank.
        reward_loops: Groups scored at the same time.
        lr: AdamW's learning rate.
        seed: Seed of prompts and noise.
    """
    config = shapes_ddpo(
        reward="jpeg_small",
        training=Training(iterations=iterations, groups=1, samples=BATCH, batch_size=40, max_lag=max_lag, seed=seed),
    )
    reward: Reward = JpegSize("small")
    if reward_sleep_s:
        reward = Sleeping(reward, reward_sleep_s)
    return replace(
        config,
        recipe="peer_setting",
        rewards=(reward,),
        tasks=(Task(name="kinds", prompts=PROMPTS, rewards=(reward.name,)),),
        heldout=(EvaluationSpec(name="kinds", prompts=PROMPTS[:2], samples_per_prompt=4, rewards=(reward.name,)),),
        record=RecordSteps(count=5, first=10),
        optimizer=OptimizerSpec(lr=lr, weight_decay=1e-4),
        checkpoint_every=max(1, iterations),
        pools=Pools(
            actors=actors,
            actor_groups=4,
            learner_ranks=learner_ranks,
            learner_threads=learner_threads,
            reward_loops=reward_loops,
        ),
    )
