"""The plan of a run's training orders: its tasks take turns, an iteration each.

The place of an order gives its iteration and its number within it. A group that fails is ordered again in its place, so
that an iteration is always whole and of one task.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from drover.common import seeds
from drover.common.errors import ConfigError
from drover.learner.intake.prompt_order import ShuffledPrompts


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One thing to learn: a name, prompts, and the rewards that judge the samples drawn for them."""

    name: str
    prompts: Sequence[str]
    rewards: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.prompts) or not self.rewards:
            raise ConfigError(f"task {self.name!r} needs at least one prompt and one reward")


@dataclass(frozen=True, slots=True)
class RecordSteps:
    """The choice of the denoising steps to train: ``count`` of the first ``first``, drawn anew for each group.

    ``shared`` draws them once for all groups of an iteration, as arXiv 2401.12244 does. The last steps of a short chain
    carry gradients 5 to 10 times larger than the early ones and decide only texture; leaving them out keeps the gradient
    norm steady.
    """

    count: int
    first: int
    shared: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.count <= self.first:
            raise ConfigError(f"cannot record {self.count} of the first {self.first} steps; choose 1 <= count <= first")

    def at(self, seed: int, number: int) -> tuple[int, ...]:
        """[K] rising indices of the steps to record, for the group or iteration ``number``."""
        chooser = random.Random(seeds.derive(seed, "record", number))
        return tuple(sorted(chooser.sample(range(self.first), self.count)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The fields shared by all training orders of a run. A *place* is the position of an order: iteration x groups + number."""

    tasks: tuple[Task, ...]
    groups: int  # of an iteration
    samples_per_prompt: int
    record: RecordSteps | None  # None: no step is recorded
    seed: int
    fingerprint: str
    keep_latents: bool = False

    def task(self, place: int) -> Task:
        return self.tasks[place // self.groups % len(self.tasks)]

    def prompt(self, place: int) -> str:
        """The prompt of a place: each task goes through its own prompts."""
        turn = place // self.groups // len(self.tasks)
        return ShuffledPrompts(self.task(place).prompts).at(self.seed, turn * self.groups + place % self.groups)

    def steps(self, place: int, group: int) -> tuple[int, ...]:
        """[K] steps to record."""
        if self.record is None:
            return ()
        return self.record.at(self.seed, place // self.groups if self.record.shared else group)
