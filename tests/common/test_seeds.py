import subprocess
import sys

import torch

from drover.common.seeds import derive, generators, normal
from drover.common.types import Purpose


def draw(seed=1, purpose="train", group=7, samples=(0, 1, 2)):
    return normal((4, 2), generators(seed, purpose, group, samples))


def test_the_same_four_give_the_same_noise():
    assert torch.equal(draw(), draw())
    assert torch.equal(draw(purpose=Purpose.TRAIN), draw(purpose="train"))


def test_a_sample_keeps_its_noise_whoever_is_sampled_beside_it():
    assert torch.equal(draw(samples=(0, 1, 2))[2], draw(samples=(2,))[0])
    assert torch.equal(draw(samples=(5, 2, 9))[1], draw(samples=(2,))[0])


def test_any_of_the_four_changes_the_noise():
    noise = [draw(seed=2), draw(purpose="eval"), draw(group=8), draw(samples=(3, 4, 5)), draw()]
    assert all(not torch.equal(one, other) for i, one in enumerate(noise) for other in noise[:i])
    assert derive("ab", "c") != derive("a", "bc")


def test_noise_is_standard_normal_across_samples():
    noise = normal((1000,), generators(0, "train", 0, range(100)))
    assert noise.shape == (100, 1000)
    assert noise.dtype == torch.float32
    assert abs(noise.mean().item()) < 0.01
    assert abs(noise.std().item() - 1) < 0.01
    neighbours = (noise[1:] * noise[:-1]).mean(dim=1)
    assert neighbours.abs().max().item() < 0.15


def test_seeds_are_63_bits_and_equal_in_every_process():
    seeds = [derive(0, "train", group, 0) for group in range(2000)]
    assert len(set(seeds)) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62
    program = "from drover.common.seeds import derive; print(derive(0, 'train', 3, 0))"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(told.stdout) == seeds[3]
