"""The reference: other weights of the policy's network, held without gradient, that an objective compares it with.

There are three kinds. `AdaptersOff` costs no memory and is always the base model. `FrozenCopy` is the model as the run began,
or as it was ``refresh`` iterations ago at most (an *old policy*). `MovingAverage` follows the policy slowly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from drover.common.errors import ConfigError
from drover.common.policies.model import Model
from drover.common.protocols import Policy

if TYPE_CHECKING:
    import torch

REFERENCE = "reference"  # its name in the optimiser's state, where checkpoints find it


class Reference(Protocol):
    """The description of a run's reference: how its weights are held. Frozen; holds no weights."""

    def check(self, model: Model) -> None:
        """Raise `ConfigError` where the model cannot give such a reference."""

    def hold(self, model: Model, policy: Policy, device: str) -> HeldReference:
        """Build the reference. Called before the optimiser's first step, with the sharded ``policy``."""


class HeldReference(Protocol):
    """A reference in memory. Its ``policy`` is the reference in the objective's `Models`."""

    policy: Policy

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Follow the policy, which has made an optimiser step."""

    def after_iteration(self, update: int, optimizer: torch.optim.Optimizer) -> None:
        """Follow the policy, which has ended iteration ``update``, counted from 1."""

    def resumed(self, optimizer: torch.optim.Optimizer) -> None:
        """Take up a loaded checkpoint: its optimiser state holds the reference's weights if they have ever moved."""


@dataclass(frozen=True, slots=True)
class AdaptersOff:
    """The policy's own network with its adapters switched off: the base model, without a second copy."""

    def check(self, model: Model) -> None:
        if not model.adapters:
            raise ConfigError(
                "AdaptersOff is the base below adapters, but this model trains all of its weights; set lora=Lora(...) on "
                "the model, or use reference=FrozenCopy()"
            )

    def hold(self, model: Model, policy: Policy, device: str) -> HeldReference:
        from drover.learner.held_reference import Base

        return Base(policy)


@dataclass(frozen=True, slots=True)
class FrozenCopy:
    """A second copy of the network, sharded like the first. It copies the policy every ``refresh`` iterations; 0: never."""

    refresh: int = 0

    def __post_init__(self) -> None:
        if self.refresh < 0:
            raise ConfigError(f"refresh counts iterations, or is 0 for a reference that stays; got {self.refresh}")

    def check(self, model: Model) -> None: ...

    def hold(self, model: Model, policy: Policy, device: str) -> HeldReference:
        from drover.learner.held_reference import Copy

        return Copy(model, policy, device, refresh=self.refresh)


@dataclass(frozen=True, slots=True)
class MovingAverage:
    """A second copy that keeps ``decay`` of itself at every optimiser step and takes the rest from the policy."""

    decay: float

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise ConfigError(f"decay is the share of the old average that a step keeps, in (0, 1); got {self.decay}")

    def check(self, model: Model) -> None: ...

    def hold(self, model: Model, policy: Policy, device: str) -> HeldReference:
        from drover.learner.held_reference import Copy

        return Copy(model, policy, device, decay=self.decay)
