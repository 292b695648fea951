"""Offline preference pairs without a reference: the run learns from files alone, and no actor samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch.nn.functional as F

from drover.common import seeds
from drover.common.diffusion.error import per_part, squared_error
from drover.common.diffusion.time_laws import Uniform
from drover.common.media.pictures import Pictures
from drover.common.protocols import FileBatch
from drover.deploy.config import Pools, RunConfig
from drover.deploy.recipes.toy_ddpo import toy_ddpo
from drover.learner.examples import Credit, LatentBatch, MeasuredGroup
from drover.learner.files.from_files import FromFiles
from drover.learner.objective import BatchKind, LossOutput, Models, Needs
from drover.worlds.plane.policy import LEVELS, RANGE


@dataclass(frozen=True, slots=True)
class Margin:
    """The preferred sample's denoising error is to be the smaller one: -log sigmoid(beta (error of the other - its own))."""

    beta: float
    learns_from: ClassVar[BatchKind] = LatentBatch
    watched: ClassVar[tuple[str, ...]] = ("accuracy",)
    needs: ClassVar[Needs] = Needs()

    def credit(self, groups: Sequence[MeasuredGroup]) -> Credit:
        raise NotImplementedError("there are no samples")

    def loss(self, models: Models, batch: LatentBatch) -> LossOutput:
        draws = list(batch.draws[: len(batch.weight)])
        time = Uniform().draw(models.policy.schedule, draws).repeat(2)
        noise = seeds.normal(models.policy.latent_shape, draws).repeat(2, 1)
        error = per_part(squared_error(models.policy, batch.x0, noise, time, batch.cond), batch.weight.shape[1])
        better, worse = error.chunk(2)
        z = self.beta * batch.weight * (worse - better)
        return LossOutput(-F.logsigmoid(z)[batch.weight != 0].sum(), {"accuracy": (z > 0).float().sum()})


@dataclass(frozen=True, slots=True)
class NearAndFar:
    """Pairs of points; the one nearer to ``goal`` is preferred. Pair i depends on (seed, i) alone."""

    goal: tuple[float, float]

    def open(self, seed: int) -> NearAndFarSource:
        return NearAndFarSource(np.asarray(self.goal), seed)


@dataclass(frozen=True, slots=True)
class NearAndFarSource:
    goal: np.ndarray
    seed: int

    @property
    def skipped(self) -> Mapping[str, int]:
        return {}

    def batch(self, step: int, size: int) -> FileBatch:
        pairs = [
            np.random.default_rng((self.seed, index)).normal(1.5, 1.5, (2, 2))
            for index in range(step * size, (step + 1) * size)
        ]
        ordered = [sorted(pair, key=lambda point: float(((point - self.goal) ** 2).sum())) for pair in pairs]
        points = np.array([pair[side] for side in (0, 1) for pair in ordered])
        return FileBatch(media_of(points), ["anywhere"] * 2 * size, np.ones((size, 1)))


def recipe(*, iterations: int = 30, learner_ranks: int = 1) -> RunConfig:
    """Preference pairs from files move the toy's weights, and nothing is sampled."""
    config = replace(toy_ddpo(), iterations=iterations, max_lag=0)
    files = FromFiles(source=NearAndFar((-1.0, 1.0)), objective=Margin(beta=1.0), batch_size=64, when="alone")
    return replace(
        config, recipe="offline_pairs", files=files, tasks=(), objective=None, heldout=(), record=None, rewards=(),
        pools=Pools(actors=0, learner_ranks=learner_ranks),
    )  # fmt: skip


def media_of(points: np.ndarray) -> Pictures:
    """The toy's media of points [N, 2]."""
    whole = ((points.clip(-RANGE, RANGE) + RANGE) / (2 * RANGE) * LEVELS).round().astype(int)
    pixels = np.zeros((len(whole), 1, 2, 3), np.uint8)
    pixels[:, 0, :, 0], pixels[:, 0, :, 1] = whole >> 8, whole & 255
    return Pictures(pixels)
