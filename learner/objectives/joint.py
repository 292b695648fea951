"""Several rewards at once, each with prompts of its own: tasks take turns, and each is judged by its own objective.

Source: "Large-scale Reinforcement Learning for Diffusion Models", arXiv 2401.12244, algorithm 1: advantages are
standardised inside the task, which makes the scales of rewards irrelevant; every task is sampled with the weights that
the one before left. The paper weighs all tasks alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from drover.common.errors import ConfigError
from drover.common.protocols import Kernel, Policy
from drover.learner.examples import Credit, MeasuredGroup, StepBatch
from drover.learner.objective import LossOutput
from drover.learner.objectives.ddpo import Ddpo


@dataclass(frozen=True, slots=True, kw_only=True)
class Joint:
    """``tasks`` by name, all with the same clip; ``weights`` multiplies a task's advantages where it is not 1."""

    tasks: Mapping[str, Ddpo]
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(self.weights.keys() - self.tasks.keys())
        if unknown or not self.tasks:
            raise ConfigError(f"task weights name {unknown}; the tasks are {sorted(self.tasks)}")
        if len({task.clip for task in self.tasks.values()}) > 1:
            raise ConfigError("all tasks share one clip range: they train the same policy in the same steps")

    @property
    def rewards(self) -> tuple[str, ...]:
        """Of all tasks."""
        return tuple(dict.fromkeys(name for task in self.tasks.values() for name in task.rewards))

    @property
    def needs_groups(self) -> bool:
        return any(task.needs_groups for task in self.tasks.values())

    def credit(self, groups: Sequence[MeasuredGroup]) -> list[Credit]:
        credits: dict[int, Credit] = {}
        for name in dict.fromkeys(group.rollout.task for group in groups):
            mine = [i for i, group in enumerate(groups) if group.rollout.task == name]
            found = self.tasks[name].credit([groups[i] for i in mine])
            weight = self.weights.get(name, 1.0)
            credits |= {i: Credit(weight * c.weights, c.counted) for i, c in zip(mine, found, strict=True)}
        return [credits[i] for i in range(len(groups))]

    def loss(self, policy: Policy, kernel: Kernel, batch: StepBatch) -> LossOutput:
        return next(iter(self.tasks.values())).loss(policy, kernel, batch)
