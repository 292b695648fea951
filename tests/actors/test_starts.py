from dataclasses import replace

import pytest
import torch

from drover.actors.sampler import Plain, advance, draws_of, stored
from drover.actors.starts import PartlyNoised, PureNoise, SharedNoise
from drover.common import seeds
from drover.common.diffusion.kernels.renoise import Ddim, Renoise
from drover.common.diffusion.noising import DiscreteSchedule
from drover.common.errors import ConfigError, SamplingFailed
from drover.common.policies.guided import Guided
from drover.common.policies.stable_diffusion.policy import StableDiffusion
from drover.common.protocols import Prediction
from drover.worlds.plane.model import toy_kernel
from drover.worlds.plane.policy import ToyChain

KERNEL = Renoise(20, Ddim(eta=1.0))


class Scene(ToyChain):
    """A policy that predicts its condition, two numbers, as the clean sample."""

    def __init__(self):
        super().__init__()
        self.schedule = DiscreteSchedule.scaled_linear(final="clean")

    def encode(self, names):
        return {"latents": torch.tensor([[float(name), -float(name)] for name in names])}

    def predict(self, x, time, cond):
        a, s = (one.float()[:, None] for one in self.schedule.coefficients(time))
        return Prediction(x0=cond["latents"], noise=(x - a * cond["latents"]) / s)


def draw(policy, start, *, prompts=("1", "2"), samples=3, record=(), kernel=KERNEL, draw=0):
    names = [prompt for prompt in prompts for _ in range(samples)]
    sampling = Plain(kernel, start).load(policy, "cpu")
    draws = draws_of(5, "train", draw, prompts=len(prompts), samples=samples)
    return sampling(policy.encode(names), draws, prompts=names, record=record, storage=torch.float32)


def test_a_plain_chain_draws_its_start_and_then_one_noise_a_step_from_each_samples_own_generator():
    policy, kernel = ToyChain(), toy_kernel()
    chain = draw(policy, PureNoise(), kernel=kernel, record=(0, 1, 2, 3, 4))
    own = seeds.generators(5, "train", 0, range(6))
    x, cond = seeds.normal((2,), own), policy.encode([""] * 6)
    with torch.no_grad():
        for i in range(5):
            assert torch.equal(chain.states[i], x)
            step, x, _ = advance(policy, kernel, x, i, cond, seeds.normal((2,), own))
            assert torch.equal(chain.log_probs[i], step.log_prob(x))
    assert torch.equal(chain.x0, x)


def test_siblings_share_their_first_state_and_nothing_else():
    chain = draw(ToyChain(), SharedNoise(), kernel=toy_kernel(), record=(0, 1))
    first, second = chain.states[0], chain.states[1]
    assert torch.equal(first[0].expand(3, 2), first[:3]) and torch.equal(first[3].expand(3, 2), first[3:])
    assert not torch.isclose(first[0], first[3]).any()
    assert len(second[:, 0].unique()) == 6
    again, other = (draw(ToyChain(), SharedNoise(), kernel=toy_kernel(), record=(0,), draw=d) for d in (0, 1))
    assert torch.equal(again.states[0], first) and not torch.isclose(other.states[0], first).any()


def test_a_partly_noised_chain_begins_at_known_latents_under_noise_of_its_own():
    policy, start = Scene(), PartlyNoised(low=0.65, high=0.8)
    times = KERNEL.times(policy.schedule)
    draws, cond = draws_of(5, "train", 0, prompts=40, samples=2), policy.encode([str(i // 2) for i in range(80)])
    x, first = start.begin(policy, times, cond, draws)
    levels = torch.tensor([times[step] for step in first])
    assert first[::2] == first[1::2]  # siblings begin at the same level
    assert len(set(first)) > 2 and levels.min() >= 600 and levels.max() <= 800
    a, s = (one.float()[:, None] for one in policy.schedule.coefficients(levels))
    noise = (x - a * cond["latents"]) / s
    assert noise.std().item() == pytest.approx(1, abs=0.15) and not torch.isclose(noise[::2], noise[1::2]).any()


def test_the_other_samples_of_a_batch_do_not_change_where_a_partly_noised_chain_ends():
    policy, start = Scene(), PartlyNoised(low=0.3, high=0.9)
    together = draw(policy, start, prompts=("1", "2", "3"))
    sampling, draws = Plain(KERNEL, start).load(policy, "cpu"), draws_of(5, "train", 0, prompts=3, samples=3)
    alone = sampling(policy.encode(["2"]), draws.rows(slice(4, 5)), prompts=["2"], record=(), storage=torch.float32)
    assert torch.allclose(alone.x0[0], together.x0[4], atol=1e-6)
    assert torch.allclose(together.x0, policy.encode([str(1 + i // 3) for i in range(9)])["latents"], atol=1e-5)


def test_steps_before_the_start_of_a_chain_cannot_be_recorded():
    start = PartlyNoised(low=0.5, high=0.5)
    chain = draw(Scene(), start, record=(12, 3))
    assert chain.take(slice(None), (12,), torch.float32).recording.steps == (12,)
    with pytest.raises(SamplingFailed, match=r"steps \[3\] come before the start"):
        chain.take(slice(None), (12, 3), torch.float32)


def test_a_start_from_known_latents_needs_conditions_that_have_some():
    with pytest.raises(ConfigError, match=r"begins at 'latents' of the conditioning, which has \['text'\]"):
        draw(ToyChain(), PartlyNoised(), kernel=toy_kernel())
    for shares in ({"low": 0.0}, {"low": 0.9, "high": 0.8}, {"high": 1.1}):
        with pytest.raises(ConfigError, match="0 < low <= high <= 1"):
            PartlyNoised(**shares)


def test_a_deterministic_kernel_samples_what_the_start_decides():
    kernel = replace(KERNEL, rule=Ddim(eta=0.0))
    one = draw(ToyChain(), SharedNoise(), kernel=replace(toy_kernel(), rule=Ddim(eta=0.0)))
    assert torch.equal(one.x0[:1].expand(3, 2), one.x0[:3])
    assert draw(Scene(), PureNoise(), kernel=kernel).log_probs == {}


def test_a_samplers_guidance_replaces_that_of_the_model(tiny_folder):
    bare = StableDiffusion.load(tiny_folder)

    def scale(policy, guidance):
        loaded = Plain(KERNEL, guidance=guidance).load(policy, "cpu").policy
        assert loaded.trainable is bare.trainable
        return loaded.scale if isinstance(loaded, Guided) else 1

    assert [scale(bare, guidance) for guidance in (None, 1.0, 4.0)] == [1, 1, 4.0]
    assert [scale(Guided(bare, 3.0), guidance) for guidance in (None, 1.0, 4.0)] == [3.0, 1, 4.0]


def test_half_precision_storage_rounds_the_start_too():
    x = torch.tensor([1 / 3])
    assert stored(x, torch.float16).item() == x.half().float().item() != x.item()
