"""The description of a Stable Diffusion policy, as recipes name it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from drover.common.errors import ConfigError
from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.policies.model import Lora, Precision, SavedLora, bind
from drover.common.policies.stable_diffusion.checkpoints import check_pipeline, check_scheduler, read_json
from drover.common.protocols import Policy

if TYPE_CHECKING:
    from torch import Tensor

    from drover.common.policies.stable_diffusion.policy import StableDiffusion


@dataclass(frozen=True, slots=True, kw_only=True)
class StableDiffusionModel:
    """A Stable Diffusion model (1.x, 2.x, XL, or a latent consistency model of these) from a diffusers folder or hub id.

    ``guidance`` is the scale of classifier-free guidance, 1 for none. A UNet that takes its guidance scale as an input, as
    latent consistency models do, receives it there instead. ``compute`` is the autocast regime of sampling and training
    alike. ``image_size`` is (height, width) in pixels. Without ``lora`` the whole UNet learns.
    """

    media: ClassVar[type[Media]] = Pictures

    checkpoint: str
    guidance: float
    compute: Precision = "float32"
    image_size: tuple[int, int] | None = None
    lora: Lora | SavedLora | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.guidance < math.inf:
            raise ConfigError(f"guidance must be a finite number of at least 1, which is none; got {self.guidance}")
        if self.compute not in get_args(Precision):
            raise ConfigError(f"compute must be one of {', '.join(get_args(Precision))}; got {self.compute!r}")
        if self.image_size is not None and (len(self.image_size) != 2 or min(self.image_size) < 1):
            raise ConfigError(f"image_size is (height, width) in pixels, both positive; got {self.image_size}")

    @property
    def adapters(self) -> bool:
        return isinstance(self.lora, Lora)

    def check(self) -> None:
        from drover.common.policies.stable_diffusion.policy import FAMILY

        folder = check_pipeline(self.checkpoint, FAMILY)
        if folder is not None:
            scheduler = folder / "scheduler" / "scheduler_config.json"
            check_scheduler(str(scheduler), read_json(scheduler))
            self._told_scale(read_json(folder / "unet" / "config.json"))

    def build(self, device: str) -> Policy:
        from drover.common.policies.consistency import ConsistencyHead
        from drover.common.policies.guided import guided

        policy = self._network(device)
        scheduler = policy.pipeline.scheduler
        headed: Policy = policy
        if type(scheduler).__name__ == "LCMScheduler":
            headed = ConsistencyHead(policy, time_scaling=scheduler.config.timestep_scaling)
        return headed if policy.empty is None else guided(headed, self.guidance)

    def save(self, weights: Mapping[str, Tensor], folder: Path) -> Path:
        """Write ``pipeline/`` for plain diffusers, or ``lora/`` for its ``load_lora_weights``."""
        from drover.common.policies.lora import save_lora

        policy = self._network("cpu")
        bind(weights, policy)
        if self.lora is not None:
            written = folder / "lora"
            save_lora(policy, written, base=self.checkpoint)
        else:
            written = folder / "pipeline"
            policy.save_pipeline(written)
        return written

    def of_run(self, folder: Path) -> StableDiffusionModel:
        from drover.common.policies.lora import base_of

        whole, adapters = folder / "pipeline", folder / "lora"
        if whole.is_dir():
            return replace(self, checkpoint=str(whole), lora=None)
        if adapters.is_dir():
            return replace(self, checkpoint=base_of(adapters), lora=SavedLora(folder=adapters))
        raise ConfigError(f"{folder} holds neither pipeline/ nor lora/, which a run writes at its end; finish it first")

    def _network(self, device: str) -> StableDiffusion:
        """The policy without guidance and head."""
        from drover.common.policies.lora import load_lora, with_lora
        from drover.common.policies.stable_diffusion.policy import StableDiffusion, load_pipeline

        pipeline = load_pipeline(self.checkpoint, device=device)
        told = self._told_scale(pipeline.unet.config)
        policy = StableDiffusion(pipeline, compute=self.compute, image_size=self.image_size, embedded_scale=told)
        match self.lora:
            case Lora(rank=rank, alpha=alpha, seed=seed):
                return with_lora(policy, rank=rank, alpha=alpha, seed=seed)
            case SavedLora(folder=adapters):
                load_lora(policy, adapters)
        return policy

    def _told_scale(self, unet: Mapping[str, Any]) -> float | None:
        """The guidance scale as an input of a UNet with this config; None for a UNet without such an input."""
        if unet.get("time_cond_proj_dim") is None:
            return None
        if self.guidance == 1:
            raise ConfigError(
                f"the UNet of {self.checkpoint!r} takes its guidance scale as an input, as latent consistency models do; "
                "set guidance to the scale it is to be told, such as 8"
            )
        return self.guidance
