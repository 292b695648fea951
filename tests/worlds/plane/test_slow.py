"""The toy made slow: the same points and the same measurements as without the sleep, later."""

import time

import numpy as np
import torch

from drover.common.media.pictures import Pictures
from drover.reward_servers.rewards.toy_point import ToyPoint
from drover.worlds.plane.policy import ToyChain
from drover.worlds.plane.slow import Slow, SlowToy

POINTS = torch.tensor([[0.0, 1.0], [-1.0, 1.0], [2.0, -3.0]])


def test_five_milliseconds_a_sample_are_fifteen_for_three_and_change_no_picture():
    policy = SlowToy(sample_s=0.005).build("cpu")
    began_s = time.monotonic()
    media = policy.decode(POINTS, {})
    assert time.monotonic() - began_s >= 0.015
    assert np.array_equal(media.pixels, ToyChain().decode(POINTS, {}).pixels)


def test_a_slow_reward_keeps_name_and_values_of_the_reward_inside():
    media = ToyChain().decode(POINTS, {})
    slow = Slow(ToyPoint(name="other"), sample_s=0.005)
    assert slow.name == "other" and slow.takes is Pictures
    began_s = time.monotonic()
    scores = slow.load("cpu")(("anywhere",) * 3, media)
    assert time.monotonic() - began_s >= 0.015
    assert scores == ToyPoint().load("cpu")(("anywhere",) * 3, media)
