"""Make one optimiser step: sums, one division, backward, clip, step. A step that is not finite raises before it is made."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from drover.common.errors import TrainingDiverged
from drover.learner import fsdp, ranks
from drover.learner.answers import loss_of
from drover.learner.batches import Batches
from drover.learner.objective import Models, Objective, Surveys
from drover.learner.spec import OptimizerSpec

AVERAGE = "average"  # its name in the optimiser's state


@dataclass(frozen=True, slots=True)
class Part:
    """One part of an optimiser step's loss: the sums of an objective over batches, divided by ``count``, times ``weight``."""

    objective: Objective
    batches: Batches[Any]
    count: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class PartStats:
    """One part's loss, and the means of its watched numbers over the terms that were computed."""

    loss: float
    watched: dict[str, float]


@dataclass(frozen=True, slots=True)
class StepStats:
    """One optimiser step: its parts in order, and the norm of the gradient before it was clipped."""

    parts: tuple[PartStats, ...]
    grad_norm: float

    @property
    def loss(self) -> float:
        return self.parts[-1].loss

    @property
    def watched(self) -> dict[str, float]:
        return self.parts[-1].watched


class Stepper:
    """Makes optimiser steps on one rank's shard. Owns the optimiser."""

    def __init__(self, models: Models, spec: OptimizerSpec) -> None:
        self._models, self._spec = models, spec
        self._module = models.policy.trainable
        self._parameters = list(fsdp.trainable(self._module).values())
        self.optimizer = torch.optim.AdamW(
            self._parameters, lr=spec.lr, betas=spec.betas, weight_decay=spec.weight_decay, fused=True
        )
        self.steps = 0  # the optimiser steps that moved the schedule of the learning rate

    def step(self, parts: Sequence[Part], *, scheduled: bool = True) -> StepStats:
        """Make one optimiser step on the sum of the parts, all ranks together.

        A step that is not ``scheduled`` does not move the schedule of the learning rate. Raises `TrainingDiverged`, with
        the weights unchanged.
        """
        self.optimizer.zero_grad(set_to_none=True)
        sums = [self._backward(part, last=part is parts[-1]) for part in parts]
        stats = self._apply(parts, sums)
        self.steps += scheduled
        return stats

    def _backward(self, part: Part, *, last: bool) -> dict[str, float]:
        """Add the part's gradients. Returns its sums on this rank.

        Ranks exchange gradients in the last batch of the last part.
        """
        sums = dict.fromkeys(("loss", "terms", *part.objective.watched), 0.0)
        known = self._survey(part)
        for number, (batch, counts) in enumerate(part.batches, start=1):
            fsdp.sync_gradients(self._module, on=last and number == part.batches.num_batches)
            given = batch if known is None else replace(batch, known=known)
            output = loss_of(part.objective, self._models, given)
            (part.weight * output.total / part.count if counts else output.total * 0.0).backward()
            if counts:
                sums["loss"] += part.weight * output.total.item() / part.count
                sums["terms"] += len(batch.weight)
                for name, value in output.watched.items():
                    sums[name] += value.item()
        return sums

    @torch.no_grad()
    def _survey(self, part: Part) -> dict[str, float] | None:
        """The sums that the objective asked for, over all batches of all ranks."""
        if not isinstance(part.objective, Surveys):
            return None
        sums: defaultdict[str, float] = defaultdict(float)
        for batch, counts in part.batches:
            for name, value in part.objective.survey(self._models, batch).items():
                sums[name] += value.item() if counts else 0.0
        names = sorted(sums)
        return dict(zip(names, ranks.all_sum([sums[name] for name in names]), strict=True))

    def average(self) -> bool:
        """Replace the weights by their moving average, for good. Returns whether there is an average."""
        if not self._averaged:
            return False
        with torch.no_grad():
            for parameter in self._parameters:
                fsdp.local(parameter).copy_(fsdp.local(self.optimizer.state[parameter][AVERAGE]))
        fsdp.reshard(self._module)
        return True

    def _apply(self, parts: Sequence[Part], sums: Sequence[Mapping[str, float]]) -> StepStats:
        """Sum over the ranks, clip, and step. Every rank has the same names in the same order: the declared ones."""
        summed = iter(ranks.all_sum([value for mine in sums for value in mine.values()]))
        totals = [{name: next(summed) for name in mine} for mine in sums]
        norm = fsdp.full(torch.nn.utils.clip_grad_norm_(self._parameters, self._spec.grad_clip)).item()
        losses = [total["loss"] for total in totals]
        if not math.isfinite(norm) or not all(map(math.isfinite, losses)):
            raise TrainingDiverged(
                f"optimiser step {self.steps + 1}: loss {losses[-1]}, gradient norm {norm}; nothing was changed. "
                "Resume from the last checkpoint with a lower learning rate"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self._spec.rate(self.steps)
        starts = self._starts()
        self.optimizer.step()
        fsdp.reshard(self._module)
        self._follow(starts)
        return StepStats(tuple(map(_means, totals)), norm)

    @property
    def _averaged(self) -> bool:
        """Whether there is an average: from the first step on, where the recipe asks for one."""
        return AVERAGE in self.optimizer.state.get(self._parameters[0], {})

    @torch.no_grad()
    def _starts(self) -> list[Tensor]:
        """Copies of the weights before the very first step, where the average begins; [] before later steps."""
        if not self._spec.ema or self._averaged:
            return []
        return [fsdp.local(parameter).clone() for parameter in self._parameters]

    @torch.no_grad()
    def _follow(self, starts: list[Tensor]) -> None:
        """Move the average a little towards the weights. It is kept and saved with the optimiser's moments."""
        if not self._spec.ema:
            return
        for parameter, start in zip_longest(self._parameters, starts):
            state = self.optimizer.state[parameter]
            average = fsdp.local(state.setdefault(AVERAGE, start))
            average.lerp_(fsdp.local(parameter), 1 - self._spec.ema)


def _means(total: dict[str, float]) -> PartStats:
    """The loss, and the watched numbers divided by the terms."""
    terms = max(total["terms"], 1)
    watched = {name: value / terms for name, value in total.items() if name not in ("loss", "terms")}
    return PartStats(total["loss"], watched)
