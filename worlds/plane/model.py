"""The description of the plane's policy and its kernel, as recipes name them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from drover.common.diffusion.kernels.renoise import Consistency, Renoise
from drover.common.diffusion.spacing import Leading
from drover.common.files import write_whole
from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.protocols import Policy

if TYPE_CHECKING:
    from torch import Tensor


NUM_STEPS = 5


def toy_kernel() -> Renoise:
    """The kernel that `ToyChain` is made for: five steps at times 4, 3, 2, 1, 0, all with a density."""
    return Renoise(NUM_STEPS, Consistency(), Leading(offset=0))


@dataclass(frozen=True, slots=True)
class ToyModel:
    """The five-step chain in the plane."""

    adapters: ClassVar[bool] = False
    media: ClassVar[type[Media]] = Pictures

    def check(self) -> None: ...

    def build(self, device: str) -> Policy:
        from drover.worlds.plane.policy import ToyChain

        return ToyChain(device)

    def save(self, weights: Mapping[str, Tensor], folder: Path) -> Path:
        from safetensors.torch import save

        path = folder / "toy.safetensors"
        write_whole(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}))
        return path
