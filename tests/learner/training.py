"""A few optimiser steps on recorded groups, as each rank of the learner does them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from drover.common.diffusion.kernels.renoise import Ddim, Renoise
from drover.common.policies.model import Lora
from drover.common.policies.stable_diffusion.model import StableDiffusionModel
from drover.common.protocols import Kernel, Policy
from drover.common.transport.memory import MemoryBroker
from drover.learner import fsdp
from drover.learner.batches import StepFetcher, divide, terms_of
from drover.learner.objective import Models
from drover.learner.objectives.ddpo import Ddpo
from drover.learner.ranks import Iteration
from drover.learner.spec import OptimizerSpec
from drover.learner.step import Part, Stepper, StepStats
from drover.worlds.plane.model import toy_kernel
from drover.worlds.plane.policy import ToyChain
from tests.learner.made_up import credit, recorded

STEPS = (0, 2, 3)
WEIGHTS = ((1.0, -0.5, 0.0, 0.7), (-1.2, 0.3, 0.4, 0.0), (0.9, -0.9, 0.2, -0.1))  # 10 rows with a weight: 5 a rank


def model(name: str, folder: Path | None) -> tuple[Policy, Kernel]:
    """The policy and kernel of "toy", or of "lora": a guided tiny Stable Diffusion with adapters."""
    if name == "toy":
        return ToyChain(), toy_kernel()
    described = StableDiffusionModel(checkpoint=str(folder), guidance=3.0, lora=Lora(rank=2, alpha=2.0))
    policy = described.build("cpu")
    with torch.no_grad():  # away from the start, where half of the factors get no gradient
        for parameter_name, parameter in sorted(fsdp.trainable(policy.trainable).items()):
            if ".lora_B." in parameter_name:
                parameter.fill_(0.02)
    return policy, Renoise(5, Ddim(eta=1.0))


class Rank:
    """One rank with its sharded policy and optimiser, and an iteration to learn from."""

    def __init__(self, name: str, folder: Path | None, *, weights=WEIGHTS, spec: OptimizerSpec | None = None) -> None:
        self.policy, self.kernel = model(name, folder)
        self.blobs = MemoryBroker("training").blobs()
        groups = [
            recorded(self.policy, self.kernel, self.blobs, g, samples=len(row), steps=STEPS)
            for g, row in enumerate(weights)
        ]
        self.iteration = Iteration(tuple(groups), credit(*weights))
        fsdp.shard(self.policy.trainable, "cpu")
        self.objective = Ddpo(weights={"point": 1.0}, clip=0.2)
        self.models = Models(self.policy, self.kernel)
        self.stepper = Stepper(self.models, spec or OptimizerSpec(lr=1e-2, grad_clip=100.0))

    @property
    def module(self) -> nn.Module:
        return self.policy.trainable

    def learn(self, *, ranks: int = 1, rank: int = 0, batch_size: int = 4, updates: int = 2) -> list[StepStats]:
        """Train on the iteration, in ``updates`` optimiser steps."""
        learned, turns = self.iteration.credit, terms_of(self.iteration, self.objective)
        assert learned is not None
        shares = divide(learned, turns=turns, updates=updates, ranks=ranks, rank=rank, batch_size=batch_size)
        fetcher = StepFetcher(self.models, self.blobs, device="cpu", batch_size=batch_size)
        count = learned.terms * turns / max(1, len(shares))
        return [
            self.stepper.step([Part(self.objective, fetcher.batches(self.iteration, share, 0), count)])
            for share in shares
        ]

    def weights(self) -> dict[str, torch.Tensor]:
        """The trained parameters, gathered from all ranks."""
        with fsdp.gathered(self.module) as weights:
            return {name: weight.clone() for name, weight in weights.items()}
