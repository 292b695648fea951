import pytest
import torch

from drover.common.diffusion.canary import canary
from drover.common.policies.guided import Guided
from drover.common.policies.stable_diffusion.policy import StableDiffusion
from drover.worlds.plane.policy import ToyChain
from tests.common.policies.conftest import tiny_folder

__all__ = ["tiny_folder"]


def test_it_moves_with_the_weights_by_no_more_than_the_prediction_does():
    one, other = ToyChain(), ToyChain()
    other.trainable.b.data += 0.3
    assert canary(one, "a", "cpu") == canary(ToyChain(), "a", "cpu")
    # The noise of the chain is (x - 0.8 x0) / 0.6, and x0 moves by 0.3 / 0.8.
    assert 0.01 < abs(canary(other, "a", "cpu") - canary(one, "a", "cpu")) <= 0.5


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_rounding_products_to_bfloat16_moves_it_by_less_than_is_allowed_for(tiny_folder, scale):
    values = []
    for compute in ("float32", "bfloat16"):
        policy = StableDiffusion.load(tiny_folder, compute=compute)
        values.append(canary(policy if scale == 1 else Guided(policy, scale), "a red circle", "cpu"))
    assert 0 < abs(values[0] - values[1]) < 2e-2


def test_it_is_taken_under_the_given_condition(tiny_folder):
    policy = StableDiffusion.load(tiny_folder)
    values = torch.tensor([canary(policy, name, "cpu") for name in ("a", "a", "two blue squares")])
    assert values[0] == values[1] != values[2]
