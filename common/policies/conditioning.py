"""Pick, repeat and join rows of a conditioning: named tensors that share their first axis, the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from drover.common.protocols import Conditioning

if TYPE_CHECKING:
    from torch import Tensor


def rows(cond: Conditioning, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
    """The rows at ``indices``, in that order; indices may repeat."""
    import torch

    index = torch.as_tensor(indices, dtype=torch.long)
    return {name: tensor.index_select(0, index.to(tensor.device)) for name, tensor in cond.items()}


def concat(conds: Sequence[Conditioning]) -> dict[str, Tensor]:
    """Join batches one after the other. All must have the same names; raises ValueError otherwise."""
    import torch

    names = set(conds[0])
    for cond in conds[1:]:
        if set(cond) != names:
            raise ValueError(f"conditionings of one batch must share names, got {sorted(names)} and {sorted(cond)}")
    return {name: torch.cat([cond[name] for cond in conds]) for name in conds[0]}
