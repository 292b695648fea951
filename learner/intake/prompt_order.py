"""Choose the prompt of each order, as a pure function of the order's number, so that resuming needs no cursor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from drover.common import seeds
from drover.common.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ShuffledPrompts:
    """Gives every prompt once per pass; each pass has its own random order."""

    prompts: Sequence[str]

    def __post_init__(self) -> None:
        if not len(self.prompts):
            raise ConfigError("there is no prompt to train on; give at least one")

    def at(self, seed: int, group: int) -> str:
        """The prompt of the group-th order."""
        pass_number, position = divmod(group, len(self.prompts))
        return self.prompts[_order(seed, pass_number, len(self.prompts))[position]]


@lru_cache(maxsize=4)
def _order(seed: int, pass_number: int, size: int) -> list[int]:
    import torch

    generator = torch.Generator().manual_seed(seeds.derive(seed, "prompts", pass_number))
    return torch.randperm(size, generator=generator).tolist()
