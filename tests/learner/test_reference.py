"""References: a frozen copy, the base below adapters, an old policy, a moving average."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from drover.common import seeds
from drover.common.errors import ConfigError
from drover.common.policies.model import Lora
from drover.common.policies.stable_diffusion.model import StableDiffusionModel
from drover.learner import fsdp
from drover.learner.reference import AdaptersOff, FrozenCopy, MovingAverage
from drover.learner.saving.checkpoint import Checkpoints
from drover.worlds.plane.model import ToyModel
from tests.learner.gloo import alone


@pytest.fixture(autouse=True)
def process_group() -> Iterator[None]:
    with alone():
        yield


class Toy:
    """A sharded toy policy with its optimiser, whose steps add 1 to every weight."""

    def __init__(self, reference) -> None:
        self.policy = ToyModel().build("cpu")
        fsdp.shard(self.policy.trainable, "cpu")
        (self.weight,) = fsdp.trainable(self.policy.trainable).values()
        self.optimizer = torch.optim.AdamW([self.weight], lr=1e-3, fused=True)
        self.reference = reference.hold(ToyModel(), self.policy, "cpu")

    def step(self) -> None:
        """One optimiser step, which leaves moments behind, and then the weights one higher than before."""
        before = fsdp.local(self.weight).detach().clone()
        self.weight.grad = torch.zeros_like(self.weight)
        self.optimizer.step()
        with torch.no_grad():
            fsdp.local(self.weight).copy_(before + 1)
        fsdp.reshard(self.policy.trainable)
        self.reference.after_step(self.optimizer)

    @property
    def held(self) -> float:
        """The reference's weight, as its forward uses it: the toy's output moves by 1 / 0.8 of it."""
        x, time = torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)
        start = ToyModel().build("cpu")
        moved = self.reference.policy.output(x, time, {}) - start.output(x, time, {})
        return float(moved.mean().detach() * 0.8)


def test_a_frozen_copy_stays_where_the_run_began() -> None:
    toy = Toy(FrozenCopy())
    for update in (1, 2, 3):
        toy.step()
        toy.reference.after_iteration(update, toy.optimizer)
    assert toy.held == 0


def test_a_refreshed_copy_is_the_policy_of_every_second_iteration() -> None:
    toy, held = Toy(FrozenCopy(refresh=2)), []
    for update in (1, 2, 3, 4, 5):
        toy.step()
        toy.reference.after_iteration(update, toy.optimizer)
        held.append(round(toy.held, 5))
    assert held == [0, 2, 2, 4, 4]


def test_a_moving_average_keeps_its_share() -> None:
    toy = Toy(MovingAverage(decay=0.75))
    toy.step()
    assert toy.held == pytest.approx(0.25, abs=1e-5)
    toy.step()
    assert toy.held == pytest.approx(0.75 * 0.25 + 0.25 * 2, abs=1e-5)


@pytest.mark.parametrize("reference", [FrozenCopy(refresh=1), MovingAverage(decay=0.5)])
def test_a_checkpoint_brings_the_reference_back(reference, tmp_path: Path) -> None:
    toy = Toy(reference)
    for update in (1, 2):
        toy.step()
        toy.reference.after_iteration(update, toy.optimizer)
    saved = Checkpoints(tmp_path)
    saved.save(2, toy.policy.trainable, toy.optimizer, {"ranks": 1})
    saved.finish()
    again = Toy(reference)
    again_saved = Checkpoints(tmp_path)
    folder = again_saved.choose().folder
    assert folder is not None
    again_saved.load(folder, again.policy.trainable, again.optimizer)
    again.reference.resumed(again.optimizer)
    assert again.held == toy.held != 0
    for each in (toy, again):
        each.step()
        each.reference.after_iteration(3, each.optimizer)
    assert again.held == toy.held


def test_a_reference_has_no_gradient() -> None:
    toy = Toy(FrozenCopy())
    out = toy.reference.policy.output(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), {})
    assert not out.requires_grad


@pytest.mark.slow
def test_adapters_off_equal_a_frozen_copy_to_the_bit_and_after_training_the_base(tiny_folder) -> None:
    described = StableDiffusionModel(checkpoint=str(tiny_folder), guidance=3.0, lora=Lora(rank=2, alpha=2.0))
    policy = described.build("cpu")
    fsdp.shard(policy.trainable, "cpu")
    off = AdaptersOff().hold(described, policy, "cpu").policy
    copy = FrozenCopy().hold(described, policy, "cpu").policy
    noise = seeds.normal(policy.latent_shape, seeds.generators(0, "test", 0, range(2)))
    time, cond = torch.tensor([5, 700]), policy.encode(["a", "b"])

    def outputs() -> list[torch.Tensor]:
        return [each.predict(noise, time, cond).x0.detach() for each in (policy, off, copy)]

    before = outputs()
    assert torch.equal(before[0], before[1]) and torch.equal(before[1], before[2])
    fsdp.reshard(policy.trainable)
    trainable = fsdp.trainable(policy.trainable)
    assert all(parameter.requires_grad for parameter in trainable.values())
    with torch.no_grad():
        for parameter in trainable.values():
            fsdp.local(parameter).add_(0.05)
    fsdp.reshard(policy.trainable)
    after = outputs()
    assert not torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[1]) and torch.equal(after[2], before[2])


def test_adapters_that_are_not_there_cannot_be_switched_off() -> None:
    with pytest.raises(ConfigError, match="this model trains all of its weights; set lora="):
        AdaptersOff().check(ToyModel())


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5])
def test_an_average_keeps_a_share_between_0_and_1(decay: float) -> None:
    with pytest.raises(ConfigError, match=r"in \(0, 1\); got"):
        MovingAverage(decay=decay)
