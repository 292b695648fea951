"""Carry weights between roles of one process, with the same packing and checks as across machines."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from drover.common.errors import WeightsLost
from drover.common.protocols import Canary
from drover.common.weights import flat
from drover.common.weights.shelf import Shelf


class MemoryWeights:
    """Publisher and subscriber in one object; keeps the newest version and the pinned ones."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.floor = -1
        self._shelf: Shelf[tuple[flat.Manifest, np.ndarray]] = Shelf(newest=1)

    def publish(self, version: int, tensors: Mapping[str, Tensor], canary: Canary | None) -> None:
        self._shelf.put(version, flat.pack(version, tensors, self.dtype, canary))

    def pin(self, version: int) -> None:
        if not self._shelf.pin(version):
            raise WeightsLost(f"version {version} cannot be pinned, it is gone; the newest is {self.latest()}")

    def unpin(self, version: int) -> None:
        self._shelf.unpin(version)

    def latest(self) -> int:
        return self._shelf.latest()

    def load(self, version: int, into: nn.Module) -> Canary | None:
        found = self._shelf.get(version)
        if found is None:
            raise WeightsLost(f"version {version} is not here; the newest is {self.latest()}")
        manifest, buffer = found
        flat.load(manifest, buffer, into)
        return manifest.canary
