"""One group from noise to clean latents, keeping only the transitions that were asked for.

Axes: N samples, K recorded steps, U distinct stored states, S parts of a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from drover.common import seeds
from drover.common.errors import SamplingFailed
from drover.common.protocols import Conditioning, Kernel, Policy


@dataclass(frozen=True, slots=True)
class Recording:
    """The transitions of the recorded steps, as `drover.common.types.Transitions` describes them, with the tensors in hand."""

    steps: tuple[int, ...]
    times: tuple[int, ...]
    next_times: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    states: Tensor  # [N, U, *latent] in the storage dtype
    log_probs: Tensor  # [N, K, S] float32


@dataclass(frozen=True, slots=True)
class Trajectory:
    x0: Tensor  # [N, *latent] float32
    recording: Recording | None


@dataclass(frozen=True, slots=True)
class Chain:
    """A batch of chains, with what was kept of them on the way. Several groups may share one, each its own rows."""

    times: tuple[int, ...]  # [num_steps + 1]
    x0: Tensor  # [B, *latent] float32
    states: dict[int, Tensor]  # position along the chain -> [B, *latent] float32
    log_probs: dict[int, Tensor]  # step -> [B, S]

    @classmethod
    def joined(cls, parts: Sequence[Chain]) -> Chain:
        """Several batches as one, in order."""
        first = parts[0]
        return cls(
            times=first.times,
            x0=torch.cat([part.x0 for part in parts]),
            states={i: torch.cat([part.states[i] for part in parts]) for i in first.states},
            log_probs={i: torch.cat([part.log_probs[i] for part in parts]) for i in first.log_probs},
        )

    def take(self, rows: slice, record: Sequence[int], storage: torch.dtype) -> Trajectory:
        """One group's part. Raises `SamplingFailed` when one of its latents is not finite."""
        x0 = self.x0[rows]
        if not torch.isfinite(x0).all():
            raise SamplingFailed("latents are not finite; lower the learning rate or the guidance scale")
        if not record:
            return Trajectory(x0=x0, recording=None)
        steps = tuple(sorted(record))
        positions = sorted({i for step in steps for i in (step, step + 1)})
        place = {position: place for place, position in enumerate(positions)}
        recording = Recording(
            steps=steps,
            times=tuple(self.times[i] for i in steps),
            next_times=tuple(self.times[i + 1] for i in steps),
            before=tuple(place[i] for i in steps),
            after=tuple(place[i + 1] for i in steps),
            states=torch.stack([self.states[i][rows] for i in positions], dim=1).to(storage),
            log_probs=torch.stack([self.log_probs[i][rows] for i in steps], dim=1).float(),
        )
        return Trajectory(x0=x0, recording=recording)


@torch.no_grad()
def denoise(
    policy: Policy,
    kernel: Kernel,
    cond: Conditioning,
    *,
    generators: Sequence[torch.Generator],
    record: Sequence[int],
    storage: torch.dtype,
    device: str,
) -> Chain:
    """Denoise one latent per generator, conditioned on the rows of ``cond``, keeping the steps of ``record``.

    Every state is rounded to the storage dtype before it is scored or continued from, so the log-prob that travels
    is exactly the one a reader recomputes.
    """
    times = kernel.times(policy.schedule)
    x = _stored(seeds.normal(policy.latent_shape, generators), storage).to(device)
    states: dict[int, Tensor] = {}
    log_probs: dict[int, Tensor] = {}
    for i in range(kernel.num_steps):
        time, next_time = (torch.full((len(generators),), t, device=device) for t in times[i : i + 2])
        step = kernel.step(policy.schedule, x, time, next_time, policy.predict(x, time, cond))
        x_next = _stored(step.sample(seeds.normal(policy.latent_shape, generators).to(device)), storage)
        if i in record:
            states[i], states[i + 1] = x, x_next
            log_probs[i] = step.log_prob(x_next)
        x = x_next
    return Chain(times, x, states, log_probs)


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
    """`denoise`, all of it one group. Raises `SamplingFailed` when a latent stops being finite."""
    chain = denoise(policy, kernel, cond, generators=generators, record=record, storage=storage, device=device)
    return chain.take(slice(None), record, storage)


def _stored(x: Tensor, storage: torch.dtype) -> Tensor:
    """x after a round trip through the storage dtype."""
    return x.to(storage).float()
