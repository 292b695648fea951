"""Weights between roles of one process. Same packing, same checks as across machines."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import WeightsLost
from common.protocols import Canary
from common.weights import flat


class MemoryWeights:
    """Publisher and subscriber in one object; keeps the newest version only."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.floor = -1
        self._newest: tuple[flat.Manifest, np.ndarray] | None = None

    def publish(self, version: int, tensors: Mapping[str, Tensor], canary: Canary | None) -> None:
        self._newest = flat.pack(version, tensors, self.dtype, canary)

    def latest(self) -> int:
        return -1 if self._newest is None else self._newest[0].version

    def load(self, version: int, into: nn.Module) -> Canary | None:
        if self._newest is None or self._newest[0].version != version:
            raise WeightsLost(f"version {version} is not here; the newest is {self.latest()}")
        manifest, buffer = self._newest
        flat.load(manifest, buffer, into)
        return manifest.canary
