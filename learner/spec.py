"""The settings that turn an iteration into optimiser steps: how it is divided, and the optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from drover.common.errors import ConfigError

By = Literal["samples", "steps"]
"""An optimiser step has a part of the iteration's samples, or of their recorded steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec:
    """AdamW, whose learning rate may rise at first and fall towards the end.

    Policy gradients are mostly noise. With a constant rate this noise goes on moving the weights, away from pictures that
    they could draw; a rate that falls to 0 keeps the learned weights.
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
