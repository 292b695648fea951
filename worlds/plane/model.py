"""The description of the plane's policy and its kernel, as recipes name them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from drover.common.diffusion.kernels.renoise import Consistency, Renoise
from drover.common.diffusion.spacing import Leading
from drover.common.errors import ConfigError
from drover.common.files import write_whole
from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.policies.model import Precision, bind
from drover.common.protocols import Policy

if TYPE_CHECKING:
    from torch import Tensor

NUM_STEPS = 5
WEIGHTS = "toy.safetensors"


def toy_kernel() -> Renoise:
    """The kernel that `ToyChain` is made for: five steps at times 4, 3, 2, 1, 0, all with a density."""
    return Renoise(NUM_STEPS, Consistency(), Leading(offset=0))


@dataclass(frozen=True, slots=True)
class ToyModel:
    """The five-step chain in the plane, with its first weights, or with those in the file ``weights`` of a run."""

    weights: Path | None = field(default=None, kw_only=True)
    compute: ClassVar[Precision] = "float32"
    adapters: ClassVar[bool] = False
    media: ClassVar[type[Media]] = Pictures

    def check(self) -> None: ...

    def build(self, device: str) -> Policy:
        from safetensors.torch import load_file

        from drover.worlds.plane.policy import ToyChain

        policy = ToyChain(device)
        if self.weights is not None:
            bind(load_file(self.weights, device), policy)
        return policy

    def save(self, weights: Mapping[str, Tensor], folder: Path) -> Path:
        from safetensors.torch import save

        path = folder / WEIGHTS
        write_whole(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}))
        return path

    def of_run(self, folder: Path) -> ToyModel:
        if not (folder / WEIGHTS).is_file():
            raise ConfigError(f"{folder} holds no {WEIGHTS}, which a run writes at its end; finish it first")
        return replace(self, weights=folder / WEIGHTS)
