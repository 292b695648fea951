"""The loss that a diffusion model was pretrained with: the squared error of the network's output at noised latents.

Source: "Denoising Diffusion Probabilistic Models", arXiv 2006.11239, eq. 14. On real pictures beside rewards it keeps the
model close to them (arXiv 2401.12244, eq. 8); on the best samples it is supervised fine-tuning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from drover.common import seeds
from drover.common.diffusion.error import per_part, squared_error
from drover.common.diffusion.time_laws import TimeLaw, Uniform
from drover.common.errors import ConfigError
from drover.learner.examples import Credit, LatentBatch, MeasuredGroup
from drover.learner.objective import BatchKind, LossOutput, Models, Needs


@dataclass(frozen=True, slots=True, kw_only=True)
class Denoising:
    """Learns from files by the pretraining loss; ``times`` is the law of the drawn times. It gives samples no credit."""

    times: TimeLaw = field(default_factory=Uniform)
    learns_from: ClassVar[BatchKind] = LatentBatch
    watched: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[Needs] = Needs()

    def credit(self, groups: Sequence[MeasuredGroup]) -> Credit:
        raise ConfigError("Denoising learns from files alone; give it to FromFiles, and the run another objective")

    def loss(self, models: Models, batch: LatentBatch) -> LossOutput:
        policy = models.policy
        time = self.times.draw(policy.schedule, batch.draws).to(batch.x0.device)
        noise = seeds.normal(policy.latent_shape, batch.draws).to(batch.x0.device)
        error = squared_error(policy, batch.x0, noise, time, batch.cond)
        return LossOutput(total=(batch.weight * per_part(error, batch.weight.shape[1])).sum())
