"""Learn several tasks at once, each with its own prompts and rewards: tasks take turns, and each has its own objective.

Source: "Large-scale Reinforcement Learning for Diffusion Models", arXiv 2401.12244, algorithm 1: advantages are
standardised inside the task, which makes the scales of rewards irrelevant; every task is sampled with the weights that
the one before left. The paper weighs all tasks alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from drover.common.errors import ConfigError
from drover.learner.examples import Credit, MeasuredGroup, StepBatch
from drover.learner.objective import BatchKind, LossOutput, Models, Needs
from drover.learner.objectives.ddpo import Ddpo


@dataclass(frozen=True, slots=True, kw_only=True)
class Joint:
    """Gives each task's groups to that task's objective.

    ``tasks``: name -> objective, all with the same clip. ``weights``: name -> factor of the task's advantages, 1 by default.
    """

    tasks: Mapping[str, Ddpo]
    weights: Mapping[str, float] = field(default_factory=dict)
    learns_from: ClassVar[BatchKind] = StepBatch
    watched: ClassVar[tuple[str, ...]] = Ddpo.watched

    def __post_init__(self) -> None:
        unknown = sorted(self.weights.keys() - self.tasks.keys())
        if unknown or not self.tasks:
            raise ConfigError(f"task weights name {unknown}; the tasks are {sorted(self.tasks)}")
        if len({task.clip for task in self.tasks.values()}) > 1:
            raise ConfigError("all tasks share one clip range: they train the same policy in the same steps")

    @property
    def needs(self) -> Needs:
        needs = {name: task.needs for name, task in self.tasks.items()}
        return Needs(
            by_task={name: need.rewards for name, need in needs.items()},
            siblings=max(need.siblings for need in needs.values()),
        )

    def credit(self, groups: Sequence[MeasuredGroup]) -> Credit:
        """The credit of each group by its task's objective, in the order of the groups."""
        found = []
        for name in dict.fromkeys(group.rollout.task for group in groups):
            mine = [i for i, group in enumerate(groups) if group.rollout.task == name]
            credit = self.tasks[name].credit([groups[i] for i in mine])
            rows = credit.rows.copy()
            rows[..., 0] = np.array(mine)[rows[..., 0]]
            found.append(Credit(rows, self.weights.get(name, 1.0) * credit.weights, credit.terms))
        rows = np.concatenate([credit.rows for credit in found])
        order = np.argsort(rows[:, 0, 0], kind="stable")
        weights = np.concatenate([credit.weights for credit in found])
        return Credit(rows[order], weights[order], sum(credit.terms for credit in found))

    def loss(self, models: Models, batch: StepBatch) -> LossOutput:
        """The loss of any task's objective: they differ in their rewards and share the clip."""
        return next(iter(self.tasks.values())).loss(models, batch)
