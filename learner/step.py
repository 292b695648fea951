"""One optimiser step: sums, one division, backward, clip, step. Stops before a step that is not finite."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import zip_longest

import torch
import torch.distributed as dist
from torch import Tensor

from drover.common.errors import ConfigError, TrainingDiverged
from drover.common.protocols import Kernel, Policy
from drover.learner import fsdp, ranks
from drover.learner.examples import StepBatch
from drover.learner.objective import Objective

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
class StepStats:
    """What one optimiser step did. ``watched`` holds means over the terms that were computed."""

    loss: float
    grad_norm: float
    watched: dict[str, float]


class Stepper:
    """Owns the optimiser of one rank's shard."""

    def __init__(self, policy: Policy, kernel: Kernel, objective: Objective, spec: OptimizerSpec) -> None:
        self._policy, self._kernel, self._objective, self._spec = policy, kernel, objective, spec
        self._parameters = list(fsdp.trainable(policy.trainable).values())
        self.optimizer = torch.optim.AdamW(
            self._parameters, lr=spec.lr, betas=spec.betas, weight_decay=spec.weight_decay, fused=True
        )
        self.steps = 0

    def step(
        self,
        batches: Iterable[tuple[StepBatch, bool]],
        *,
        num_batches: int,
        count: float,
        beside: Callable[[], Tensor] | None = None,
    ) -> StepStats:
        """Descend on the mean over ``count`` terms, all ranks together, and on a loss ``beside`` it, if there is one.

        Raises `TrainingDiverged`, changing nothing.
        """
        sums: defaultdict[str, float] = defaultdict(float)
        self.optimizer.zero_grad(set_to_none=True)
        if beside is not None:
            fsdp.sync_gradients(self._policy.trainable, on=False)
            beside().backward()
        for number, (batch, counts) in enumerate(batches, start=1):
            fsdp.sync_gradients(self._policy.trainable, on=number == num_batches)
            output = self._objective.loss(self._policy, self._kernel, batch)
            (output.total / count if counts else output.total * 0.0).backward()
            if counts:
                sums["loss"] += output.total.item() / count
                sums["terms"] += len(batch.x)
                for name, value in output.watched.items():
                    sums[name] += value.item()
        stats = self._apply(sums)
        self.steps += 1
        return stats

    def step_beside(self, loss: Callable[[], Tensor]) -> StepStats:
        """Descend on another loss alone, the sum over the ranks; the schedule of the rate does not move."""
        self.optimizer.zero_grad(set_to_none=True)
        fsdp.sync_gradients(self._policy.trainable, on=True)
        value = loss()
        value.backward()
        return self._apply(defaultdict(float, {"loss": value.item(), "terms": 1.0 / dist.get_world_size()}))

    def average(self) -> bool:
        """Put the moving average in the place of the weights, for good; whether there is one."""
        if not self._averaged:
            return False
        with torch.no_grad():
            for parameter in self._parameters:
                fsdp.local(parameter).copy_(fsdp.local(self.optimizer.state[parameter][AVERAGE]))
        fsdp.reshard(self._policy.trainable)
        return True

    def _apply(self, sums: defaultdict[str, float]) -> StepStats:
        names = sorted(sums.keys() | {"loss", "terms", "ratio", "clip_fraction", "approx_kl"})
        total = dict(zip(names, ranks.all_sum([float(sums[name]) for name in names]), strict=True))
        norm = fsdp.full(torch.nn.utils.clip_grad_norm_(self._parameters, self._spec.grad_clip)).item()
        if not torch.isfinite(torch.tensor([norm, total["loss"]])).all():
            raise TrainingDiverged(
                f"optimiser step {self.steps + 1}: loss {total['loss']}, gradient norm {norm}; nothing was changed. "
                "Resume from the last checkpoint with a lower learning rate"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self._spec.rate(self.steps)
        starts = self._starts()
        self.optimizer.step()
        fsdp.reshard(self._policy.trainable)
        self._follow(starts)
        loss, terms = total.pop("loss"), total.pop("terms")
        return StepStats(loss, norm, {name: value / max(terms, 1) for name, value in total.items()})

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
