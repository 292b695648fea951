"""The description of the plane's policy, as recipes name it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from drover.common.files import write_whole
from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.protocols import Policy
from drover.worlds.plane.policy import ToyChain


@dataclass(frozen=True, slots=True)
class ToyModel:
    """The five-step chain in the plane."""

    adapters: ClassVar[bool] = False
    media: ClassVar[type[Media]] = Pictures

    def check(self) -> None: ...

    def build(self, device: str) -> Policy:
        return ToyChain(device)

    def save(self, weights: Mapping[str, Tensor], folder: Path) -> Path:
        from safetensors.torch import save

        path = folder / "toy.safetensors"
        write_whole(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}))
        return path
