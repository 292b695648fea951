"""Samples drawn as an actor draws them, for tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from drover.actors.sampler import Plain
from drover.common import seeds
from drover.common.diffusion.chain import Trajectory
from drover.common.protocols import Conditioning, Draws, Kernel, Policy


def sample(
    policy: Policy,
    kernel: Kernel,
    cond: Conditioning,
    *,
    indices: Sequence[int],
    record: Sequence[int] = (),
    storage: torch.dtype = torch.float32,
    seed: int = 1,
    group: int = 7,
) -> Trajectory:
    """The samples of those indices of a training group, a row of ``cond`` each."""
    own = seeds.generators(seed, "train", group, indices)
    sampling = Plain(kernel).load(policy, "cpu")
    chain = sampling(cond, Draws(own, own), prompts=[""] * len(own), record=record, storage=storage)
    return chain.take(slice(None), record, storage)
