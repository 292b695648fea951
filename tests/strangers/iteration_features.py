"""A reward over features of the whole iteration (DRAGON, arXiv 2504.15217): the set is judged, and each sample's part in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.protocols import Scores
from drover.deploy.config import RunConfig
from drover.deploy.recipes.toy_ddpo import toy_ddpo
from drover.learner.advantages import standardise
from drover.learner.examples import Credit, MeasuredGroup, StepBatch
from drover.learner.objective import BatchKind, LossOutput, Models, Needs
from drover.learner.objectives.ddpo import Ddpo
from drover.worlds.plane.policy import read_points

EXEMPLAR_MEAN = np.array([-1.0, 1.0])


@dataclass(frozen=True, slots=True)
class Coordinates:
    """The features of a sample are its coordinates; it has no value of its own."""

    name: str = "coordinates"
    takes: ClassVar[type[Media]] = Pictures

    def load(self, device: str):
        def score(prompts: Sequence[str], media: Pictures) -> Scores:
            return Scores([0.0] * len(media), features=read_points(media).astype(np.float32))

        return score


@dataclass(frozen=True, slots=True)
class MeanDistance:
    """The held-out statistic: the distance of a set's mean feature from that of the exemplars."""

    name: str = "mean_distance"
    reward: str = "coordinates"

    def __call__(self, features: np.ndarray) -> float:
        return distance(features)


def distance(features: np.ndarray) -> float:
    return float(np.linalg.norm(features.mean(axis=0) - EXEMPLAR_MEAN))


@dataclass(frozen=True, slots=True)
class MatchMean:
    """The objective: a sample's advantage is the growth of the set's distance if the sample were left out."""

    ddpo: Ddpo
    learns_from: ClassVar[BatchKind] = StepBatch
    watched: ClassVar[tuple[str, ...]] = Ddpo.watched
    needs: ClassVar[Needs] = Needs(rewards=("coordinates",), one_version=True)

    def credit(self, groups: Sequence[MeasuredGroup]) -> Credit:
        measured = [group.rewards["coordinates"] for group in groups]
        valid = np.concatenate([one.valid for one in measured])
        features = np.concatenate([one.features for one in measured if one.features is not None])
        known = features[valid]
        without = (known.sum(axis=0) - known) / (len(known) - 1)
        gains = np.zeros(len(valid))
        gains[valid] = np.linalg.norm(without - EXEMPLAR_MEAN, axis=1) - distance(known)
        weights = standardise(gains, valid, clip=5.0)
        ends = np.cumsum([len(one.valid) for one in measured])[:-1]
        return Credit.per_sample(np.split(weights, ends), [one.valid for one in measured])

    def loss(self, models: Models, batch: StepBatch) -> LossOutput:
        return self.ddpo.loss(models, batch)


def recipe(*, iterations: int = 40) -> RunConfig:
    """The mean of an iteration's samples moves to that of the exemplars."""
    config = replace(toy_ddpo(), iterations=iterations, samples=32, max_lag=0)
    held = replace(config.heldout[0], rewards=("coordinates",), samples_per_prompt=256, statistics=(MeanDistance(),))
    return replace(
        config,
        recipe="iteration_features",
        rewards=(Coordinates(),),
        objective=MatchMean(Ddpo(weights={"coordinates": 1.0}, clip=0.2, normalise="batch")),
        tasks=(replace(config.tasks[0], rewards=("coordinates",)),),
        heldout=(held,),
    )
