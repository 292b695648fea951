"""The description of a Stable Diffusion policy, as recipes name it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.policies.guided import Guided
from drover.common.policies.lora import save_lora, with_lora
from drover.common.policies.model import Lora, bind
from drover.common.policies.stable_diffusion.checkpoints import check_pipeline
from drover.common.policies.stable_diffusion.policy import Precision, StableDiffusion
from drover.common.protocols import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class StableDiffusionModel:
    """A diffusers folder or hub id of Stable Diffusion 1.x, 2.x or XL, all of its UNet or adapters on it.

    ``guidance`` 1 leaves classifier-free guidance out. ``compute`` is the autocast regime of sampling and training alike.
    """

    media: ClassVar[type[Media]] = Pictures

    checkpoint: str
    guidance: float
    compute: Precision = "float32"
    image_size: tuple[int, int] | None = None
    lora: Lora | None = None

    @property
    def adapters(self) -> bool:
        return self.lora is not None

    def check(self) -> None:
        check_pipeline(self.checkpoint)

    def build(self, device: str) -> Policy:
        policy = self._unguided(device)
        return policy if self.guidance == 1 else Guided(policy, self.guidance)

    def save(self, weights: Mapping[str, Tensor], folder: Path) -> Path:
        """``pipeline/`` for plain diffusers, or ``lora/`` for its ``load_lora_weights``."""
        policy = self._unguided("cpu")
        bind(weights, policy)
        if self.lora is not None:
            written = folder / "lora"
            save_lora(policy, written, base=self.checkpoint)
        else:
            written = folder / "pipeline"
            policy.save_pipeline(written)
        return written

    def _unguided(self, device: str) -> StableDiffusion:
        policy = StableDiffusion.load(self.checkpoint, device=device, compute=self.compute, image_size=self.image_size)
        if self.lora is None:
            return policy
        return with_lora(policy, rank=self.lora.rank, alpha=self.lora.alpha, seed=self.lora.seed)
