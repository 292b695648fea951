import pytest
import torch

from drover.learner.losses import clipped_ratio


@pytest.mark.parametrize(
    ("advantage", "ratio", "gradient"),
    [(1, 0.99, -0.99), (1, 1.0, -1.0), (1, 1.01, 0.0), (-1, 0.99, 0.0), (-1, 1.0, 1.0), (-1, 1.01, 1.01)],
)
def test_the_gradient_with_respect_to_the_log_prob_is_the_table_of_the_clipped_surrogate(advantage, ratio, gradient):
    log_ratio = torch.tensor([ratio], dtype=torch.float64).log().requires_grad_()
    clipped_ratio(log_ratio, torch.tensor([float(advantage)]).double(), clip=1e-4).sum().backward()
    assert log_ratio.grad.item() == pytest.approx(gradient, abs=1e-9)


def test_the_value_is_the_worse_of_the_clipped_and_the_unclipped_term():
    log_ratio = torch.tensor([0.5, 1.5, 0.5, 1.5]).log()
    got = clipped_ratio(log_ratio, torch.tensor([2.0, 2.0, -2.0, -2.0]), clip=0.2)
    assert got.tolist() == pytest.approx([-1.0, -2.4, 1.6, 3.0])


def test_a_weight_of_zero_gives_no_loss_and_no_gradient():
    log_ratio = torch.tensor([0.3], requires_grad=True)
    loss = clipped_ratio(log_ratio, torch.zeros(1), clip=0.2)
    loss.sum().backward()
    assert (loss.item(), log_ratio.grad.item()) == (0.0, 0.0)
