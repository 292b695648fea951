"""Fit modules to a loss within a budget of minutes, with averaged weights, and continue after an interruption."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

AVERAGE_DECAY = 0.999
REPORT_S = 15.0
SAVE_S = 60.0
WARM_UP = 0.03  # share of the budget


@dataclass(frozen=True)
class Budget:
    """The budget of a fit: minutes of this process's time, and the highest learning rate."""

    minutes: float
    learning_rate: float


Trained = TypeVar("Trained", bound=torch.nn.Module)


def fit(
    module: Trained,
    loss: Callable[[torch.Generator], torch.Tensor],
    budget: Budget,
    checkpoint: Path,
    clock: Callable[[], float] = time.monotonic,
) -> Trained:
    """Train the module for `budget.minutes` and return it with exponentially averaged weights.

    `loss(generator)` draws its own batch and returns a scalar. The learning rate rises linearly, then falls along
    a cosine to zero by the share of time used. Training continues from `checkpoint` where it exists.
    """
    name = checkpoint.stem
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-8, betas=(0.9, 0.99), weight_decay=1e-2)
    average = copy.deepcopy(module).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    parts = {"module": module, "average": average, "optimizer": optimizer}
    step, used_s = _restore(checkpoint, parts, generator)
    budget_s, smooth = 60 * budget.minutes, None
    reported_s = saved_s = used_s
    began = clock() - used_s
    while used_s < budget_s:
        rate = budget.learning_rate * _schedule(used_s / budget_s)
        for group in optimizer.param_groups:
            group["lr"] = rate
        value = loss(generator)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        step += 1
        _blend(average, module, min(AVERAGE_DECAY, step / (step + 10)))
        smooth = value.item() if smooth is None else 0.98 * smooth + 0.02 * value.item()
        used_s = clock() - began
        if used_s - reported_s >= REPORT_S or used_s >= budget_s:
            reported_s = used_s
            left_s = max(0.0, budget_s - used_s)
            print(f"{name}: step {step}, loss {smooth:.4f}, {used_s:.0f} s, ETA {left_s:.0f} s", flush=True)
        if used_s - saved_s >= SAVE_S or used_s >= budget_s:
            saved_s = used_s
            _save(checkpoint, parts, generator, step, used_s)
    return average


def _schedule(used: float) -> float:
    if used < WARM_UP:
        return used / WARM_UP
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (used - WARM_UP) / (1 - WARM_UP)))


@torch.no_grad()
def _blend(average: torch.nn.Module, module: torch.nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)


def _save(checkpoint: Path, parts: dict[str, Any], generator: torch.Generator, step: int, used_s: float) -> None:
    state = {name: part.state_dict() for name, part in parts.items()}
    state |= {"generator": generator.get_state(), "step": step, "used_s": used_s}
    partial = checkpoint.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(checkpoint)


def _restore(checkpoint: Path, parts: dict[str, Any], generator: torch.Generator) -> tuple[int, float]:
    if not checkpoint.exists():
        return 0, 0.0
    state = torch.load(checkpoint, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    generator.set_state(state["generator"])
    return state["step"], state["used_s"]
