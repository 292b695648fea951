"""Shard parameters, gradients and optimiser state by FSDP2, on NCCL or gloo, on one rank or many.

Gradients are summed over the ranks, never averaged: the loop divides by the global count, so one rank equals two.

Functions import FSDP and DTensor themselves: the import takes most of a second, which the other roles need not spend.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

UNIT_PARAMETERS = 20_000_000  # a block this large is gathered on its own; smaller models are gathered whole


def shard(module: nn.Module, device: str) -> None:
    """Shard the module in place over all ranks of the default process group."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.split(":")[0], (dist.get_world_size(),))
    for block in _units(module):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=False)
    for part in _parts(module):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)


def _units(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost blocks whose children are below the unit size, when the whole is above it."""
    for child in module.children():
        size = sum(p.numel() for p in child.parameters())
        if size >= UNIT_PARAMETERS:
            yield from _units(child)
            if not isinstance(child, nn.ModuleList):  # a list has no forward to hook
                yield child


def _parts(module: nn.Module) -> list[FSDPModule]:
    """The modules that were sharded on their own, the whole module included."""
    from torch.distributed.fsdp import FSDPModule

    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def reshard(module: nn.Module) -> None:
    """Free gathered parameters, so that the next forward gathers the new values."""
    for part in _parts(module):
        part.reshard()


@contextmanager
def gathered(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The trainable parameters, whole, by name: one collective per part of the module, which every rank must call.

    They are gathered anew, even if an earlier forward left them gathered, and are valid until the context ends.
    """
    reshard(module)
    for part in _parts(module):
        part.unshard()
    yield {name: parameter.detach() for name, parameter in trainable(module).items()}
    reshard(module)


def sync_gradients(module: nn.Module, on: bool) -> None:
    """Set whether the next backward reduces gradients over the ranks (``on``) or only adds to the local ones."""
    from torch.distributed.fsdp import FSDPModule

    assert isinstance(module, FSDPModule)
    module.set_requires_gradient_sync(on)


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require gradients, by name, in the module's order."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor; a plain tensor as it is."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def full(tensor: Tensor) -> Tensor:
    """The whole tensor; every rank must call."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(parameter: Tensor, whole: Tensor) -> Tensor:
    """Shard ``whole``, which every rank has, as the parameter is sharded, on the parameter's device."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    whole = whole.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return whole
