"""A reference in memory: the policy with its adapters off, or a second copy, frozen or following the policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from drover.common.policies.model import Model
from drover.common.policies.wrapped import Wrapped
from drover.common.protocols import Conditioning, Policy, Prediction
from drover.learner import fsdp
from drover.learner.reference import REFERENCE


class Base:
    """The policy with its adapters off."""

    def __init__(self, policy: Policy) -> None:
        self.policy: Policy = Silent(policy, lambda: adapters_off(policy.trainable))

    def after_step(self, optimizer: torch.optim.Optimizer) -> None: ...

    def after_iteration(self, update: int, optimizer: torch.optim.Optimizer) -> None: ...

    def resumed(self, optimizer: torch.optim.Optimizer) -> None: ...


class Copy:
    """A second copy of the model. Weights that have moved are kept in the optimiser's state, and so in checkpoints."""

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
        """Move the copy's weights by ``share`` of the distance towards the policy's. 1 copies to the bit."""
        fsdp.reshard(self._module)
        for mine, copy in self._pairs:
            local = fsdp.local(copy)
            if share == 1.0:
                local.copy_(fsdp.local(mine))
            else:
                local.lerp_(fsdp.local(mine), share)
            if (
                mine in optimizer.state
            ):  # before the first optimiser step there is no state, and the copy equals the policy
                optimizer.state[mine][REFERENCE] = local


class Silent(Wrapped):
    """A policy whose forwards run without gradient, inside the context that ``within`` makes."""

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
    """Switch off the module's adapters inside the block."""
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
