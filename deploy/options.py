"""The groups of parameters that recipes share. Each field is an option of the command line, its docstring the option's help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from drover.common.errors import ConfigError
from drover.common.protocols import Files
from drover.deploy.config import Pools
from drover.learner.files.from_files import FromFiles
from drover.learner.objectives.denoising import Denoising
from drover.learner.step import OptimizerSpec


class Only:
    """Says which fields of a recipe's parameter are options; the recipe decides the others.

    It stands beside the type: ``pools: Annotated[Pools, Only("actors")] = Pools(actors=2, actor_threads=4)`` has the one
    option --actors. Without it, every field is an option.
    """

    def __init__(self, *names: str) -> None:
        self.names = names


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How much is sampled and learned from."""

    iterations: int = 1
    """Times new samples are drawn and learned from."""
    groups: int
    """Prompts per iteration."""
    samples: int
    """Samples of each prompt."""
    updates: int = 1
    """Optimiser steps an iteration is divided into."""
    batch_size: int = 128
    """Recorded steps per micro-batch of a learner rank."""
    max_lag: int = 1
    """How many versions old the weights that sampled a group may be; 0 is strictly on-policy."""
    evaluate_every: int = 0
    """Iterations between evaluations on held-out prompts; 0 for before and after alone."""
    seed: int = 0
    """Seed of prompts and noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a sample is drawn."""

    steps: int = 10
    """DDIM steps of a sample, eta 1."""
    trained_steps: int = 3
    """How many of them are trained."""
    guidance: float = 1.0
    """Classifier-free guidance scale, the same in sampling and training; 1 for none."""

    def __post_init__(self) -> None:
        if not 1 <= self.trained_steps <= self.steps:
            raise ConfigError(f"trained_steps must lie between 1 and steps = {self.steps}, got {self.trained_steps}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RealPictures:
    """How strongly steps on real pictures keep the model close to them."""

    pretraining_batch: int = 64
    """Pictures of a pretraining step."""
    pretraining_weight: float = 1.0
    """Weight of the loss on them; 0 for none."""
    pretraining_combined: bool = False
    """Add that loss to every step on rewards, instead of a step of its own at the end of each round of tasks."""

    def of(self, source: Files) -> FromFiles | None:
        """The pretraining loss on these pictures with captions; None where its weight is 0."""
        if not self.pretraining_weight:
            return None
        return FromFiles(
            source=source,
            objective=Denoising(),
            batch_size=self.pretraining_batch,
            weight=self.pretraining_weight,
            when="step" if self.pretraining_combined else "round",
        )


LearningRate = Annotated[OptimizerSpec, Only("lr")]
Processes = Annotated[Pools, Only("actors", "evaluators", "learner_ranks")]
