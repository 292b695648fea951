"""One group from noise to clean latents, keeping only the transitions that were asked for.

Axes: N samples, K recorded steps, U distinct stored states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common import seeds
from common.errors import SamplingFailed
from common.protocols import Conditioning, Kernel, Policy


@dataclass(frozen=True, slots=True)
class Recording:
    """The transitions of the recorded steps, as `common.types.Transitions` describes them, with the tensors in hand."""

    steps: tuple[int, ...]
    times: tuple[int, ...]
    next_times: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    states: Tensor  # [N, U, *latent] in the storage dtype
    log_probs: Tensor  # [N, K] float32


@dataclass(frozen=True, slots=True)
class Trajectory:
    x0: Tensor  # [N, *latent] float32
    recording: Recording | None


@torch.no_grad()
def sample(
    policy: Policy,
    kernel: Kernel,
    cond: Conditioning,
    *,
    generators: Sequence[torch.Generator],
    record: Sequence[int],
    storage: torch.dtype,
    device: str,
) -> Trajectory:
    """Denoise one latent per generator, conditioned on the rows of ``cond``.

    Every state is rounded to the storage dtype before it is scored or continued from, so the log-prob that travels
    is exactly the one a reader recomputes. Raises `SamplingFailed` when a latent stops being finite.
    """
    times = kernel.times(policy.schedule)
    x = _stored(seeds.normal(policy.latent_shape, generators), storage).to(device)
    kept: dict[int, Tensor] = {}  # state index along the chain -> state
    log_probs: list[Tensor] = []
    for i in range(kernel.num_steps):
        time, next_time = (torch.full((len(generators),), t, device=device) for t in times[i : i + 2])
        step = kernel.step(policy.schedule, x, time, next_time, policy.predict(x, time, cond))
        x_next = _stored(step.sample(seeds.normal(policy.latent_shape, generators).to(device)), storage)
        if i in record:
            kept[i], kept[i + 1] = x, x_next
            log_probs.append(step.log_prob(x_next))
        x = x_next
    if not torch.isfinite(x).all():
        raise SamplingFailed("latents are not finite; lower the learning rate or the guidance scale")
    if not record:
        return Trajectory(x0=x, recording=None)
    rows = {index: row for row, index in enumerate(sorted(kept))}
    steps = tuple(sorted(record))
    recording = Recording(
        steps=steps,
        times=tuple(times[i] for i in steps),
        next_times=tuple(times[i + 1] for i in steps),
        before=tuple(rows[i] for i in steps),
        after=tuple(rows[i + 1] for i in steps),
        states=torch.stack([kept[index] for index in sorted(kept)], dim=1).to(storage),
        log_probs=torch.stack(log_probs, dim=1).float(),
    )
    return Trajectory(x0=x, recording=recording)


def _stored(x: Tensor, storage: torch.dtype) -> Tensor:
    """x after a round trip through the storage dtype."""
    return x.to(storage).float()
