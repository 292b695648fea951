"""The description of a policy that a recipe names: every role builds the policy from it, and the run saves with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from drover.common.errors import ConfigError
from drover.common.media.media import Media
from drover.common.protocols import Policy

if TYPE_CHECKING:
    from torch import Tensor

Precision = Literal["float32", "bfloat16"]


class Model(Protocol):
    """The description of a policy: it builds the policy and saves its weights.

    Frozen; holds no weights. Its repr is a part of the recipe's fingerprint.
    """

    @property
    def media(self) -> type[Media]:
        """The kind of media that its policy draws."""

    @property
    def compute(self) -> Precision:
        """The precision of the network's products, in sampling and training alike."""

    @property
    def adapters(self) -> bool:
        """Whether only adapters learn, on frozen weights, so that the policy without them is the policy at the start."""

    def check(self) -> None:
        """Raise `ConfigError` for faults that would stop `build`, as far as they can be found within a second."""

    def build(self, device: str) -> Policy:
        """The policy with its initial weights, the same on every role and rank. Raises `ConfigError`."""

    def save(self, weights: Mapping[str, Tensor], folder: Path) -> Path:
        """Write the fine-tuned model in its ecosystem's own format. Returns the written folder or file."""

    def of_run(self, folder: Path) -> Model:
        """This model with the weights that `save` wrote to a run's folder, for sampling.

        Raises `ConfigError` where there are none, as before the end of a run.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Low-rank adapters on the attention projections; the base stays frozen."""

    rank: int
    alpha: float
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf:
            raise ConfigError(
                f"adapters need a rank of at least 1 and a positive alpha, got rank {self.rank} and alpha {self.alpha}; "
                "leave lora out to train the whole network"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedLora:
    """Adapters that a run saved in ``folder``, for sampling."""

    folder: Path


def bind(weights: Mapping[str, Tensor], policy: Policy) -> None:
    """Copy trained weights, by name, into the policy's trainable parameters. Raises `ConfigError` where names differ."""
    import torch

    wanted = {name: p for name, p in policy.trainable.named_parameters() if p.requires_grad}
    if wanted.keys() != weights.keys():
        raise ConfigError(f"{len(weights)} trained tensors do not fit a model with {len(wanted)} trainable ones")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(weights[name])
