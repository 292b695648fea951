"""The starts of denoising chains: the first state, and the step at which a chain begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drover.common import seeds
from drover.common.diffusion.noising import corrupt
from drover.common.errors import ConfigError
from drover.common.protocols import Conditioning, Draws, Policy

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class PureNoise:
    """Every sample begins at the first time, with its own noise."""

    def begin(
        self, policy: Policy, times: Sequence[int], cond: Conditioning, draws: Draws
    ) -> tuple[Tensor, Sequence[int]]:
        return seeds.normal(policy.latent_shape, draws.own), [0] * len(draws.own)


@dataclass(frozen=True, slots=True)
class SharedNoise:
    """The samples of a prompt begin with the same noise, and differ by the noise of their steps (D3PO)."""

    def begin(
        self, policy: Policy, times: Sequence[int], cond: Conditioning, draws: Draws
    ) -> tuple[Tensor, Sequence[int]]:
        return seeds.normal(policy.latent_shape, draws.siblings), [0] * len(draws.siblings)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartlyNoised:
    """Samples begin at clean latents with some noise of their own, so that the samples of a prompt share their structure.

    The share of the path that remains is drawn from [``low``, ``high``], once for all samples of a prompt; 1 is pure
    noise. ``latents`` is the name of the conditioning's tensor [B, *latent] with the clean latents.
    Source: DenseDPO, arXiv 2506.03517, guided sampling.
    """

    low: float = 0.65
    high: float = 0.8
    latents: str = "latents"

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise ConfigError(f"PartlyNoised needs shares 0 < low <= high <= 1, got {self.low} and {self.high}")

    def begin(
        self, policy: Policy, times: Sequence[int], cond: Conditioning, draws: Draws
    ) -> tuple[Tensor, Sequence[int]]:
        import torch

        if self.latents not in cond:
            raise ConfigError(
                f"PartlyNoised begins at {self.latents!r} of the conditioning, which has {sorted(cond)}; give the model "
                "conditions with clean latents, or begin with PureNoise()"
            )
        shares = [self.low + (self.high - self.low) * _uniform(generator) for generator in draws.siblings]
        first = [_first_step(times, share * policy.schedule.num_times) for share in shares]
        clean = cond[self.latents].float()
        noise = seeds.normal(policy.latent_shape, draws.own).to(clean.device)
        time = torch.tensor([times[step] for step in first], device=clean.device)
        return corrupt(policy.schedule, clean, noise, time), first


def _uniform(generator: torch.Generator) -> float:
    import torch

    return torch.rand((), generator=generator, device=generator.device).item()


def _first_step(times: Sequence[int], level: float) -> int:
    """The first step that begins at or below the time ``level``; the last step where none does."""
    return next((step for step, time in enumerate(times[:-1]) if time <= level), len(times) - 2)
