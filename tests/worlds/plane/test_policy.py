import numpy as np
import pytest
import torch

from drover.common.diffusion.kernels.density import steps_with_density
from drover.worlds.plane.model import NUM_STEPS, toy_kernel
from drover.worlds.plane.policy import ToyChain, read_points
from tests.common.policies.sampling import distribution, start, walk


def test_each_step_is_the_gaussian_of_the_definition():
    policy, kernel = ToyChain(), toy_kernel()
    with torch.no_grad():
        policy.trainable.b.copy_(torch.arange(10.0).reshape(5, 2) / 10)
    x, cond = start(policy, 6), policy.encode(["any"] * 6)
    for step, time in enumerate(kernel.times(policy.schedule)[:-1]):
        gaussian = distribution(policy, kernel, x, step, cond)
        assert torch.allclose(gaussian.mean, 0.8 * x + 0.35 + policy.trainable.b[time], atol=1e-6)
        assert gaussian.std.flatten().tolist() == pytest.approx([0.6] * 6, rel=1e-6)


def test_all_five_steps_can_be_trained_and_predictions_lie_on_the_path():
    policy = ToyChain()
    assert steps_with_density(toy_kernel(), policy.schedule) == tuple(range(NUM_STEPS))
    x, time = start(policy, 4), torch.tensor([0, 1, 2, 3])
    prediction = policy.predict(x, time, policy.encode(["a"] * 4))
    assert torch.allclose(0.8 * prediction.x0 + 0.6 * prediction.noise, x, atol=1e-6)


def test_media_carry_the_point():
    points = torch.tensor([[-1.2345, 7.9], [0.0, -8.0], [20.0, -20.0]])
    media = ToyChain().decode(points, {})
    assert media.pixels.shape == (3, 1, 2, 3)
    assert np.abs(read_points(media) - points.clamp(-8, 8).numpy()).max() < 1.3e-4


def train(sign: float) -> float:
    """Mean of -|x0 - (-1, 1)|^2 after 200 iterations of the clipped policy gradient, two steps of five each."""
    policy, kernel = ToyChain(), toy_kernel()
    optimiser = torch.optim.Adam(policy.trainable.parameters(), lr=0.02)
    chosen = torch.Generator().manual_seed(7)
    rewards = torch.zeros(0)
    for iteration in range(200):
        cond = policy.encode([""] * 1024)
        steps = list(walk(policy, kernel, start(policy, 1024, seed=iteration), cond, seed=10_000 + iteration))
        points = torch.from_numpy(read_points(policy.decode(steps[-1][2], {})))
        rewards = -(points - torch.tensor([-1.0, 1.0])).square().sum(dim=1)
        advantage = (sign * (rewards - rewards.mean()) / (rewards.std() + 1e-7)).clamp(-10, 10)
        for k in torch.randperm(NUM_STEPS, generator=chosen)[:2].tolist():
            step, x, drawn, stored = steps[k]
            ratio = (distribution(policy, kernel, x, step, cond).log_prob(drawn) - stored).exp().squeeze(1)
            loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - 1e-4, 1 + 1e-4)).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return float(rewards.mean())


def test_policy_gradients_through_our_seams_reach_the_known_optimum():
    # The optimum is exactly -2, minus twice the stationary variance; the rest is sampling noise. Training starts at -6.4.
    assert train(sign=+1) == pytest.approx(-2.01, abs=0.1)


def test_the_flipped_sign_runs_away():
    # Points are clipped at 8 when they become media, which bounds the reward from below.
    assert train(sign=-1) < -50
