"""Recipes of the tests, given to the command as a user's own file is: ``recipes.py:slow_toy``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.protocols import FileBatch, Scorer, Scores
from drover.deploy.config import Pools, RunConfig
from drover.deploy.options import Sampling, Training
from drover.deploy.recipes.shapes import shapes_ddpo
from drover.deploy.recipes.toy_ddpo import toy_ddpo
from drover.learner.files.from_files import FromFiles
from drover.learner.objectives.denoising import Denoising
from drover.learner.objectives.joint import Joint
from drover.reward_servers.rewards.toy_point import ToyPoint
from drover.worlds.plane.policy import ToyChain
from drover.worlds.plane.slow import Slow, SlowToy


def slow_toy(
    *,
    iterations: int = 20,
    groups: int = 4,
    samples: int = 64,
    max_lag: int = 0,
    pause_s: float = 0.05,
    actors: int = 1,
    evaluators: int = 0,
    evaluate_every: int = 0,
    learner_ranks: int = 1,
    checkpoint_every: int = 5,
    lease_s: float = 2.0,
    stall_s: float = 120.0,
) -> RunConfig:
    """The toy whose actors and reward take ``pause_s`` for a group, so that tests can kill processes within one."""
    config = toy_ddpo()
    return replace(
        config,
        recipe="slow_toy",
        model=SlowToy(pause_s / samples),
        rewards=(Slow(ToyPoint(), pause_s / samples),),
        heldout=(replace(config.heldout[0], samples_per_prompt=samples),),
        iterations=iterations,
        groups=groups,
        samples=samples,
        max_lag=max_lag,
        pools=Pools(actors=actors, evaluators=evaluators, learner_ranks=learner_ranks),
        evaluate_every=evaluate_every,
        checkpoint_every=checkpoint_every,
        lease_s=lease_s,
        stall_s=stall_s,
    )


def small_shapes(*, iterations: int = 2) -> RunConfig:
    """The bundled pipeline for a few seconds: real UNet, text encoder and VAE, on-policy, one thread in every role."""
    config = shapes_ddpo(
        training=Training(iterations=iterations, groups=2, samples=2, batch_size=8, max_lag=0),
        sampling=Sampling(steps=5, trained_steps=2),
        pools=Pools(actors=2),
    )
    (heldout,) = config.heldout
    few = replace(heldout, prompts=heldout.prompts[:2], samples_per_prompt=1)
    return replace(config, recipe="small_shapes", heldout=(few,))


def unscorable_toy(*, iterations: int = 30) -> RunConfig:
    """The toy with a reward that raises at every call."""
    return replace(toy_ddpo(), iterations=iterations, rewards=(Unscorable(),))


def unloadable_toy(*, iterations: int = 30) -> RunConfig:
    """The toy with a reward that cannot be loaded."""
    return replace(toy_ddpo(), iterations=iterations, rewards=(Unloadable(),))


def hanging_toy(*, stall_s: float = 30.0) -> RunConfig:
    """The toy with a reward that never answers."""
    return replace(toy_ddpo(), rewards=(Hanging(),), stall_s=stall_s)


@dataclass(frozen=True)
class Unscorable:
    takes: ClassVar[type[Media]] = Pictures
    name: str = "point"

    def load(self, device: str) -> Scorer:
        def score(prompts: Sequence[str], media: Pictures) -> Scores:
            raise RuntimeError("the judge is on strike")

        return score


@dataclass(frozen=True)
class Hanging:
    takes: ClassVar[type[Media]] = Pictures
    name: str = "point"

    def load(self, device: str) -> Scorer:
        def score(prompts: Sequence[str], media: np.ndarray) -> Scores:
            time.sleep(10_000)
            return Scores([0.0] * len(prompts))

        return score


@dataclass(frozen=True)
class Unloadable:
    takes: ClassVar[type[Media]] = Pictures
    name: str = "point"

    def load(self, device: str) -> Scorer:
        raise FileNotFoundError("no weights at judge.safetensors")


def rich_toy(*, pause_s: float = 0.05, seed: int = 0) -> RunConfig:
    """The toy with two tasks, a pretraining step after each round, a moving average and evaluations in between."""
    config = slow_toy(groups=2, samples=32, pause_s=pause_s, checkpoint_every=3)
    point = config.rewards[0]
    tasks = tuple(replace(config.tasks[0], name=name) for name in ("first", "second"))
    return replace(
        config,
        recipe="rich_toy",
        rewards=(point,),
        objective=Joint(tasks={task.name: config.objective for task in tasks}),
        tasks=tasks,
        heldout=(replace(config.heldout[0], samples_per_prompt=64),),
        optimizer=replace(config.optimizer, ema=0.9, warmup=3, decay=60),
        files=FromFiles(objective=Denoising(), source=Origin(), batch_size=8),
        evaluate_every=4,
        seed=seed,
    )


@dataclass(frozen=True)
class Origin:
    """Pictures of points near the origin."""

    def open(self, seed: int) -> Origin:
        return self

    @property
    def skipped(self) -> Mapping[str, int]:
        return {}

    def batch(self, step: int, size: int) -> FileBatch:
        points = np.random.default_rng([step, size]).normal(0, 0.1, (size, 2))
        return FileBatch(ToyChain().decode(torch.tensor(points), {}), ["anywhere"] * size)
