"""The reference: other weights of the policy's network, held without gradient, that an objective compares it with.

Three ways to hold one. `AdaptersOff` costs no memory and is always the base model. `FrozenCopy` is the model as the run began,
or as it was ``refresh`` iterations ago at most (an *old policy*). `MovingAverage` follows the policy slowly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from drover.common.errors import ConfigError
from drover.common.policies.model import Model
from drover.common.policies.wrapped import Wrapped
from drover.common.protocols import Conditioning, Policy, Prediction
from drover.learner import fsdp

REFERENCE = "reference"  # its name in the optimiser's state, where checkpoints find it


class Reference(Protocol):
    """How the reference of a run is held. Frozen and cheap."""

    def check(self, model: Model) -> None:
        """Raise `ConfigError` where the model cannot give such a reference."""

    def hold(self, model: Model, policy: Policy, device: str) -> HeldReference:
        """Before the optimiser's first step; ``policy`` is sharded."""


class HeldReference(Protocol):
    """A reference in memory. ``policy`` is that of the objective's `Models`."""

    policy: Policy

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The policy has made an optimiser step."""

    def after_iteration(self, update: int, optimizer: torch.optim.Optimizer) -> None:
        """The policy has ended iteration ``update``, counted from 1."""

    def resumed(self, optimizer: torch.optim.Optimizer) -> None:
        """A checkpoint was loaded; its optimiser state holds the reference's weights where they are not the first ones."""


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
        return _Base(policy)


@dataclass(frozen=True, slots=True)
class FrozenCopy:
    """A second copy of the network, sharded like the first. ``refresh`` above 0 makes it the policy every so many iterations."""

    refresh: int = 0

    def __post_init__(self) -> None:
        if self.refresh < 0:
            raise ConfigError(f"refresh counts iterations, or is 0 for a reference that stays; got {self.refresh}")

    def check(self, model: Model) -> None: ...

    def hold(self, model: Model, policy: Policy, device: str) -> HeldReference:
        return _Copy(model, policy, device, refresh=self.refresh)


@dataclass(frozen=True, slots=True)
class MovingAverage:
    """A second copy that keeps ``decay`` of itself at every optimiser step and takes the rest from the policy."""

    decay: float

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise ConfigError(f"decay is the share of the old average that a step keeps, in (0, 1); got {self.decay}")

    def check(self, model: Model) -> None: ...

    def hold(self, model: Model, policy: Policy, device: str) -> HeldReference:
        return _Copy(model, policy, device, decay=self.decay)


class _Base:
    """The policy below its adapters."""

    def __init__(self, policy: Policy) -> None:
        self.policy: Policy = Silent(policy, lambda: adapters_off(policy.trainable))

    def after_step(self, optimizer: torch.optim.Optimizer) -> None: ...

    def after_iteration(self, update: int, optimizer: torch.optim.Optimizer) -> None: ...

    def resumed(self, optimizer: torch.optim.Optimizer) -> None: ...


class _Copy:
    """A second build of the model. Its weights that moved live in the optimiser's state, and so in checkpoints."""

    def __init__(self, model: Model, policy: Policy, device: str, *, refresh: int = 0, decay: float = 0.0) -> None:
        self._refresh, self._decay = refresh, decay
        copy = model.build(device)
        theirs = fsdp.trainable(copy.trainable)
        copy.trainable.requires_grad_(False)
        fsdp.shard(copy.trainable, device)
        sharded = dict(copy.trainable.named_parameters())
        self._pairs = [(mine, sharded[name]) for name, mine in fsdp.trainable(policy.trainable).items()]
        assert len(self._pairs) == len(theirs), "the copy is built from the same description"
        self._module = copy.trainable
        self.policy: Policy = Silent(copy, nullcontext)

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._decay:
            self._move(optimizer, 1 - self._decay)

    def after_iteration(self, update: int, optimizer: torch.optim.Optimizer) -> None:
        if self._refresh and update % self._refresh == 0:
            self._move(optimizer, 1.0)

    @torch.no_grad()
    def resumed(self, optimizer: torch.optim.Optimizer) -> None:
        for mine, copy in self._pairs:
            state = optimizer.state.get(mine, {})
            if REFERENCE in state:
                fsdp.local(copy).copy_(fsdp.local(state[REFERENCE]))
                state[REFERENCE] = fsdp.local(copy)
        fsdp.reshard(self._module)

    @torch.no_grad()
    def _move(self, optimizer: torch.optim.Optimizer, share: float) -> None:
        """Take that share from the policy. 1 copies to the bit."""
        fsdp.reshard(self._module)
        for mine, copy in self._pairs:
            local = fsdp.local(copy)
            if share == 1.0:
                local.copy_(fsdp.local(mine))
            else:
                local.lerp_(fsdp.local(mine), share)
            if mine in optimizer.state:  # it has made a step; before, the copy is the start anyway
                optimizer.state[mine][REFERENCE] = local


class Silent(Wrapped):
    """A policy whose forwards are without gradient and inside a context."""

    def __init__(self, policy: Policy, within: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__(policy)
        self._within = within

    def predict(self, x: Tensor, time: Tensor, cond: Conditioning) -> Prediction:
        with torch.no_grad(), self._within():
            return super().predict(x, time, cond)

    def output(self, x: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        with torch.no_grad(), self._within():
            return super().output(x, time, cond)


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """The module without its adapters, inside the block."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    # The library's own switch also changes which parameters require gradients, which FSDP must not see change.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
