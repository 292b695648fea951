"""One optimiser step: sums, one division, backward, clip, step. Stops before a step that is not finite."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from drover.common.errors import ConfigError, TrainingDiverged
from drover.learner import fsdp, ranks
from drover.learner.batches import Batches
from drover.learner.objective import LossOutput, Models, Objective, Surveys

AVERAGE = "average"  # its name in the optimiser's state


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec:
    """AdamW, whose learning rate may rise at first and fall towards the end.

    Policy gradients are mostly noise, which a constant rate keeps walking the weights away from what they could draw;
    falling to 0 keeps what was learned.
    """

    lr: float
    """AdamW's learning rate, after warm-up and before decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Its decay rates of the moments of gradients."""
    weight_decay: float = 1e-2
    """Its decoupled weight decay."""
    warmup: int = 0
    """Steps over which the rate rises linearly."""
    decay: int = 0
    """Step at which the rate has fallen linearly to 0; 0: it does not fall."""
    grad_clip: float = 1.0
    """Bound of the global gradient norm."""
    ema: float = 0.0
    """Share of the moving average of weights that an update keeps; 0 for none. The average is evaluated and saved at the end."""

    def __post_init__(self) -> None:
        if not self.lr > 0 or not self.grad_clip > 0 or min(self.warmup, self.decay, self.weight_decay) < 0:
            raise ConfigError(
                f"lr and grad_clip must be positive, warmup, decay and weight_decay not negative; got lr={self.lr}, "
                f"grad_clip={self.grad_clip}, warmup={self.warmup}, decay={self.decay}, weight_decay={self.weight_decay}"
            )

        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema is the share of the old average that a step keeps, in [0, 1); got {self.ema}")

    def rate(self, step: int) -> float:
        """The learning rate of the step-th step, counted from 0."""
        rising = min(1.0, (step + 1) / max(1, self.warmup))
        return self.lr * rising * (max(0.0, 1 - step / self.decay) if self.decay else 1.0)


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
    """Owns the optimiser of one rank's shard."""

    def __init__(self, models: Models, spec: OptimizerSpec) -> None:
        self._models, self._spec = models, spec
        self._module = models.policy.trainable
        self._parameters = list(fsdp.trainable(self._module).values())
        self.optimizer = torch.optim.AdamW(
            self._parameters, lr=spec.lr, betas=spec.betas, weight_decay=spec.weight_decay, fused=True
        )
        self.steps = 0  # that moved the schedule of the learning rate

    def step(self, parts: Sequence[Part], *, scheduled: bool = True) -> StepStats:
        """One optimiser step on the sum of the parts, all ranks together.

        A step that is not ``scheduled`` leaves the schedule of the learning rate where it is. Raises `TrainingDiverged`,
        changing nothing.
        """
        self.optimizer.zero_grad(set_to_none=True)
        sums = [self._backward(part, last=part is parts[-1]) for part in parts]
        stats = self._apply(parts, sums)
        self.steps += scheduled
        return stats

    def _backward(self, part: Part, *, last: bool) -> dict[str, float]:
        """Add the part's gradients; its sums on this rank. Ranks exchange gradients in the last batch of the last part."""
        sums = dict.fromkeys(("loss", "terms", *part.objective.watched), 0.0)
        known = self._survey(part)
        for number, (batch, counts) in enumerate(part.batches, start=1):
            fsdp.sync_gradients(self._module, on=last and number == part.batches.num_batches)
            given = batch if known is None else replace(batch, known=known)
            output = _checked(part.objective, part.objective.loss(self._models, given))
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
        """Put the moving average in the place of the weights, for good; whether there is one."""
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
        """Whether there is an average: from the first step on, where one is wanted."""
        return AVERAGE in self.optimizer.state.get(self._parameters[0], {})

    @torch.no_grad()
    def _starts(self) -> list[Tensor]:
        """Copies of the weights before the very first step, where the average begins; nothing at the others."""
        if not self._spec.ema or self._averaged:
            return []
        return [fsdp.local(parameter).clone() for parameter in self._parameters]

    @torch.no_grad()
    def _follow(self, starts: list[Tensor]) -> None:
        """Move the average a little towards the weights. It lives with the optimiser's moments, and is saved with them."""
        if not self._spec.ema:
            return
        for parameter, start in zip_longest(self._parameters, starts):
            state = self.optimizer.state[parameter]
            average = fsdp.local(state.setdefault(AVERAGE, start))
            average.lerp_(fsdp.local(parameter), 1 - self._spec.ema)


def _means(total: dict[str, float]) -> PartStats:
    """Watched numbers per term."""
    terms = max(total["terms"], 1)
    watched = {name: value / terms for name, value in total.items() if name not in ("loss", "terms")}
    return PartStats(total["loss"], watched)


def _checked(objective: Objective, output: LossOutput) -> LossOutput:
    """Raises `ConfigError` for a loss that is no sum with the declared numbers."""
    name = type(objective).__name__
    if not isinstance(output, LossOutput):
        raise ConfigError(
            f"{name}.loss returned a {type(output).__name__}; return LossOutput(total=..., watched={{...}})"
        )
    if output.watched.keys() != set(objective.watched):
        raise ConfigError(
            f"{name}.loss watches {sorted(output.watched)}, but the objective declares {sorted(objective.watched)}; "
            "make them equal, so that all ranks sum the same list"
        )
    return output
