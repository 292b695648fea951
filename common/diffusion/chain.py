"""A batch of denoising chains, with the recorded steps.

Axes: B batch of chains, N samples of one group, K recorded steps, U distinct stored states, S parts of a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drover.common.errors import SamplingFailed

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Recording:
    """The transitions of the recorded steps, as in `drover.common.types.Transitions`, but with tensors for references."""

    steps: tuple[int, ...]
    times: tuple[int, ...]
    next_times: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    states: Tensor  # [N, U, *latent] in the storage dtype
    log_probs: Tensor  # [N, K, S] float32


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One group's part of a chain: its clean latents, and its recorded steps if there are any."""

    x0: Tensor  # [N, *latent] float32
    recording: Recording | None


@dataclass(frozen=True, slots=True)
class Chain:
    """A batch of chains from noise to clean latents. Several groups may share one batch, each with its own rows."""

    times: tuple[int, ...]  # [num_steps + 1]
    x0: Tensor  # [B, *latent] float32
    states: dict[int, Tensor]  # position along the chain -> [B, *latent] float32
    log_probs: dict[int, Tensor]  # step -> [B, S]

    @classmethod
    def joined(cls, parts: Sequence[Chain]) -> Chain:
        """Several batches as one, in order."""
        import torch

        first = parts[0]
        return cls(
            times=first.times,
            x0=torch.cat([part.x0 for part in parts]),
            states={i: torch.cat([part.states[i] for part in parts]) for i in first.states},
            log_probs={i: torch.cat([part.log_probs[i] for part in parts]) for i in first.log_probs},
        )

    def take(self, rows: slice, record: Sequence[int], storage: torch.dtype) -> Trajectory:
        """The trajectory of one group. Raises `SamplingFailed` for latents that are not finite, or steps not in the chain."""
        import torch

        x0 = self.x0[rows]
        if not torch.isfinite(x0).all():
            raise SamplingFailed("latents are not finite; lower the learning rate or the guidance scale")
        if not record:
            return Trajectory(x0=x0, recording=None)
        steps = tuple(sorted(record))
        if absent := set(steps) - self.log_probs.keys():
            raise SamplingFailed(f"steps {sorted(absent)} come before the start of some chains; record later steps")
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
