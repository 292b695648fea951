import pytest
import torch

from drover.common.diffusion.gaussian import Gaussian


def normals() -> tuple[Gaussian, Gaussian]:
    draws = torch.Generator().manual_seed(0)
    one = Gaussian(torch.randn(2, 3, 4, generator=draws), torch.tensor([0.5, 2.0]).reshape(2, 1, 1))
    other = Gaussian(torch.randn(2, 3, 4, generator=draws), torch.tensor([1.0, 0.3]).reshape(2, 1, 1))
    return one, other


def test_log_prob_is_the_mean_over_latent_dimensions():
    one, _ = normals()
    x = torch.randn(2, 3, 4)
    wanted = torch.distributions.Normal(one.mean, one.std).log_prob(x).mean(dim=(1, 2))
    assert one.log_prob(x).shape == (2, 1)
    assert torch.allclose(one.log_prob(x)[:, 0], wanted, atol=1e-6)


def test_kl_is_the_mean_over_latent_dimensions():
    one, other = normals()
    wanted = torch.distributions.kl_divergence(
        torch.distributions.Normal(one.mean, one.std), torch.distributions.Normal(other.mean, other.std)
    ).mean(dim=(1, 2))
    assert torch.allclose(one.kl(other)[:, 0], wanted, atol=1e-6)
    assert one.kl(one).abs().max().item() < 1e-6


def test_each_part_has_its_own_density_and_the_whole_has_their_mean():
    one, other = normals()
    x = torch.randn(2, 3, 4)
    wanted = torch.distributions.Normal(one.mean, one.std).log_prob(x).mean(dim=2)
    assert torch.allclose(one.log_prob(x, parts=3), wanted, atol=1e-6)
    for ask in (lambda parts: one.log_prob(x, parts), lambda parts: one.kl(other, parts)):
        assert ask(3).shape == (2, 3)
        assert torch.allclose(ask(3).mean(dim=1, keepdim=True), ask(1), atol=1e-6)
    with pytest.raises(ValueError, match=r"\[3, 4\] has 1 part or 3, not 2"):
        one.log_prob(x, parts=2)


def test_half_precision_latents_are_scored_in_float32():
    one, _ = normals()
    x = torch.randn(2, 3, 4).half()
    assert one.log_prob(x).dtype == torch.float32
    assert torch.equal(one.log_prob(x), one.log_prob(x.float()))


def test_one_row_without_noise_is_enough_to_refuse_a_density():
    one, other = normals()
    flat = Gaussian(one.mean, torch.tensor([0.5, 0.0]).reshape(2, 1, 1))
    for ask in (lambda: flat.log_prob(one.mean), lambda: flat.kl(other), lambda: other.kl(flat)):
        with pytest.raises(ValueError, match="std 0"):
            ask()
