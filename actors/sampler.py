"""Draw samples step by step, from a start to clean latents, and keep the recorded steps. Axes: B batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from drover.actors.starts import PureNoise
from drover.common import seeds
from drover.common.diffusion.chain import Chain
from drover.common.diffusion.gaussian import Gaussian
from drover.common.policies import conditioning
from drover.common.policies.guided import guided
from drover.common.protocols import Conditioning, Draws, Kernel, Policy, Prediction, Sampling, Start

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Plain:
    """The sampler that makes every step by one kernel: ``Plain(Renoise(50, Ddim(eta=1.0)))``.

    ``guidance`` replaces the scale of the model's own classifier-free guidance; 1 is none.
    """

    kernel: Kernel
    start: Start = field(default_factory=PureNoise)
    guidance: float | None = None

    def load(self, policy: Policy, device: str) -> Sampling:
        scaled = policy if self.guidance is None else guided(policy, self.guidance)
        return PlainSampling(scaled, self.kernel, self.start, device)


class PlainSampling:
    """The procedure of `Plain` for one policy."""

    def __init__(self, policy: Policy, kernel: Kernel, start: Start, device: str) -> None:
        self.policy, self._kernel, self._start, self._device = policy, kernel, start, device

    def __call__(
        self,
        cond: Conditioning,
        draws: Draws,
        *,
        prompts: Sequence[str],
        record: Sequence[int],
        storage: torch.dtype,
    ) -> Chain:
        """Draw a sample per row of ``cond``. Every state is rounded to the storage dtype before it is scored or used.

        So the recorded log-prob is exactly the one that the learner recomputes.
        """
        import torch

        with torch.no_grad():
            policy, kernel = self.policy, self._kernel
            times = kernel.times(policy.schedule)
            begun, first_steps = self._start.begin(policy, times, cond, draws)
            x = stored(begun, storage).to(self._device)
            states: dict[int, Tensor] = {}
            log_probs: dict[int, Tensor] = {}
            for i in range(min(first_steps), kernel.num_steps):
                moving = [row for row, first in enumerate(first_steps) if first <= i]
                step, x_next = self._step(x, i, cond, draws, moving, storage)
                if i in record and len(moving) == len(x):
                    states[i], states[i + 1] = x, x_next
                    log_probs[i] = step.log_prob(x_next, policy.parts)
                x = x_next
            return Chain(times, x, states, log_probs)

    def _step(
        self, x: Tensor, i: int, cond: Conditioning, draws: Draws, moving: Sequence[int], storage: torch.dtype
    ) -> tuple[Gaussian, Tensor]:
        """Make one step of the rows that have begun; the other rows do not change."""
        import torch

        noise = seeds.normal(self.policy.latent_shape, [draws.own[row] for row in moving]).to(self._device)
        if len(moving) == len(x):
            step, x_next, _ = advance(self.policy, self._kernel, x, i, cond, noise)
            return step, stored(x_next, storage)
        step, x_next, _ = advance(self.policy, self._kernel, x[moving], i, conditioning.rows(cond, moving), noise)
        index = torch.tensor(moving, device=x.device)
        return step, x.index_copy(0, index, stored(x_next, storage))


def advance(
    policy: Policy, kernel: Kernel, x: Tensor, i: int, cond: Conditioning, noise: Tensor
) -> tuple[Gaussian, Tensor, Prediction]:
    """Make step ``i`` of a chain from x [B, *latent]: (its distribution, a draw from it by ``noise``, the prediction)."""
    import torch

    times = kernel.times(policy.schedule)
    time, next_time = (torch.full((len(x),), t, device=x.device) for t in times[i : i + 2])
    prediction = policy.predict(x, time, cond)
    step = kernel.step(policy.schedule, x, time, next_time, prediction)
    return step, step.sample(noise), prediction


def stored(x: Tensor, storage: torch.dtype) -> Tensor:
    """x after a round trip through the storage dtype."""
    return x.to(storage).float()


def draws_of(seed: int, purpose: str, draw: int, *, prompts: int, samples: int) -> Draws:
    """The generators of ``prompts`` x ``samples`` samples, in which the samples of a prompt follow each other.

    ``own`` depends on (seed, purpose, draw, sample), ``siblings`` on (seed, purpose, draw, prompt).
    """
    rows = range(prompts * samples)
    siblings = seeds.generators(seed, f"{purpose}/siblings", draw, [row // samples for row in rows])
    return Draws(own=seeds.generators(seed, purpose, draw, rows), siblings=siblings)
