"""Dataclasses of parameters that recipes share. A field is an option of the command line, its docstring the option's help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from drover.common.errors import ConfigError
from drover.common.protocols import Files
from drover.deploy.config import Pools
from drover.learner.files.from_files import FromFiles
from drover.learner.objectives.denoising import Denoising
from drover.learner.spec import OptimizerSpec


class Only:
    """Names the fields of a recipe's parameter that are options; the recipe sets the others.

    Example: ``pools: Annotated[Pools, Only("actors")] = Pools(actors=2, actor_threads=4)`` has the one option --actors.
    Without `Only`, every field is an option.
    """

    def __init__(self, *names: str) -> None:
        self.names = names


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The number of iterations, and the amount of samples and optimiser steps in each."""

    iterations: int = 1
    """Iterations of the run: each draws new samples and learns from them."""
    groups: int
    """Prompts per iteration."""
    samples: int
    """Samples of each prompt."""
    updates: int = 1
    """Optimiser steps per iteration."""
    batch_size: int = 128
    """Recorded steps per micro-batch of a learner rank."""
    max_lag: int = 1
    """How many versions old the weights that sampled a group may be; 0 is strictly on-policy."""
    evaluate_every: int = 0
    """Iterations between evaluations on held-out prompts; 0: only before and after training."""
    seed: int = 0
    """Seed of prompts and noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """The denoising steps of a sample, the trained ones among them, and the guidance."""

    steps: int = 10
    """DDIM steps of a sample, eta 1."""
    trained_steps: int = 3
    """Number of those steps that are trained."""
    guidance: float = 1.0
    """Classifier-free guidance scale, the same in sampling and training; 1 for none."""

    def __post_init__(self) -> None:
        if not 1 <= self.trained_steps <= self.steps:
            raise ConfigError(f"trained_steps must lie between 1 and steps = {self.steps}, got {self.trained_steps}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RealPictures:
    """The loss on real pictures that keeps the model close to them: its batch, its weight, and when it is taken."""

    pretraining_batch: int = 64
    """Pictures of a pretraining step."""
    pretraining_weight: float = 1.0
    """Weight of the loss on real pictures; 0 for none."""
    pretraining_combined: bool = False
    """Add the loss on real pictures to every step on rewards, instead of taking a step on it after each round of tasks."""

    def of(self, source: Files) -> FromFiles | None:
        """Return the pretraining loss on the captioned pictures of ``source``; None where its weight is 0."""
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
