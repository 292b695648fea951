import pytest
import torch

from drover.common.diffusion.error import per_part, squared_error
from drover.common.diffusion.noising import corrupt
from drover.worlds.plane.policy import ToyChain


def test_the_error_is_taken_per_element_between_output_and_target_at_the_noised_latents():
    policy, draws = ToyChain(), torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(3, 2, generator=draws) for _ in range(2))
    time, cond = torch.tensor([0, 2, 4]), policy.encode(["a"] * 3)
    error = squared_error(policy, x0, noise, time, cond)
    output = policy.output(corrupt(policy.schedule, x0, noise, time), time, cond)
    assert error.shape == (3, 2) and error.dtype == torch.float32
    assert torch.equal(error, (output - policy.target(x0, noise, time)).square())
    error.sum().backward()
    assert (policy.trainable.b.grad[[0, 2, 4]] != 0).all() and (policy.trainable.b.grad[[1, 3]] == 0).all()


def test_of_six_numbers_in_three_parts_each_part_has_the_mean_of_its_two():
    values = torch.tensor([[[1.0, 3.0], [5.0, 7.0], [9.0, 11.0]]])
    assert per_part(values).tolist() == [[6.0]]
    assert per_part(values, 3).tolist() == [[2.0, 6.0, 10.0]]
    assert per_part(values[:0], 3).shape == (0, 3)
    with pytest.raises(ValueError, match=r"\[3, 2\] has 1 part or 3, not 2"):
        per_part(values, 2)
