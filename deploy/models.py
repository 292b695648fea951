"""Which policy a recipe trains: a frozen description that every role builds for itself, and how the result is saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from common.errors import ConfigError
from common.policies.checkpoints import check_pipeline
from common.policies.guided import Guided
from common.policies.lora import save_lora, with_lora
from common.policies.stable_diffusion import Precision, StableDiffusion
from common.policies.toy import ToyChain
from common.protocols import Policy


class Model(Protocol):
    """Frozen and cheap; part of the recipe's fingerprint through its repr."""

    def check(self) -> None:
        """Raise `ConfigError` for what `build` would refuse, as far as that is seen within a second."""

    def build(self, device: str) -> Policy:
        """The policy with its initial weights, the same on every role and rank. Raises `ConfigError`."""

    def save(self, weights: Mapping[str, Tensor], folder: Path) -> Path:
        """Write the fine-tuned model in its ecosystem's own format; the folder or file written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Low-rank adapters on the attention projections; the base stays frozen."""

    rank: int
    alpha: float
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StableDiffusionModel:
    """A diffusers folder or hub id of Stable Diffusion 1.x, 2.x or XL, all of its UNet or adapters on it.

    ``guidance`` 1 leaves classifier-free guidance out. ``compute`` is the autocast regime of sampling and training alike.
    """

    checkpoint: str
    guidance: float
    compute: Precision = "float32"
    image_size: tuple[int, int] | None = None
    lora: Lora | None = None

    def check(self) -> None:
        check_pipeline(self.checkpoint)

    def build(self, device: str) -> Policy:
        policy = self._unguided(device)
        return policy if self.guidance == 1 else Guided(policy, self.guidance)

    def save(self, weights: Mapping[str, Tensor], folder: Path) -> Path:
        """``pipeline/`` for plain diffusers, or ``lora/`` for its ``load_lora_weights``."""
        policy = self._unguided("cpu")
        _bind(weights, policy)
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


@dataclass(frozen=True, slots=True)
class ToyModel:
    """The five-step chain in the plane."""

    def check(self) -> None: ...

    def build(self, device: str) -> Policy:
        return ToyChain(device)

    def save(self, weights: Mapping[str, Tensor], folder: Path) -> Path:
        from safetensors.torch import save_file

        path = folder / "toy.safetensors"
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, path)
        return path


@torch.no_grad()
def _bind(weights: Mapping[str, Tensor], policy: Policy) -> None:
    wanted = {name: p for name, p in policy.trainable.named_parameters() if p.requires_grad}
    if wanted.keys() != weights.keys():
        raise ConfigError(f"{len(weights)} trained tensors do not fit a model with {len(wanted)} trainable ones")
    for name, parameter in wanted.items():
        parameter.copy_(weights[name])
