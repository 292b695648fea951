"""Rewards whose right answer is known: the toy's point, and the composition of rendered scenes."""

import numpy as np
import pytest
import torch

from drover.common.media.pictures import Pictures
from drover.reward_servers.rewards.shapes_truth import ShapesTruth
from drover.reward_servers.rewards.toy_point import ToyPoint
from drover.worlds.plane.policy import ToyChain
from drover.worlds.shapes.prompts import caption
from drover.worlds.shapes.renderer import BACKGROUND, render
from drover.worlds.shapes.scenes import Scene, Thing

RED, BLUE = Thing("circle", "red", 9.0, 16.0, 4.5), Thing("square", "blue", 22.0, 17.0, 4.5)
SCENE = Scene((RED, BLUE), "left of")
PROMPT = caption(SCENE)


def composition(*pictures) -> list[float]:
    return list(ShapesTruth().load("cpu")([PROMPT] * len(pictures), Pictures(np.stack(pictures))).values)


def test_a_scene_as_the_prompt_says_earns_1_and_an_empty_picture_nothing():
    empty = np.full((32, 32, 3), BACKGROUND, np.uint8)
    assert composition(render(SCENE), empty) == pytest.approx([1.0, 0.0], abs=0.005)


def test_the_right_things_in_the_wrong_places_earn_less_and_one_thing_less_still():
    swapped = Scene((Thing("circle", "red", 22.0, 16.0, 4.5), Thing("square", "blue", 9.0, 17.0, 4.5)), "right of")
    right, wrong_place, one = composition(render(SCENE), render(swapped), render(Scene((RED,), None)))
    assert right > wrong_place > one > 0


def test_each_picture_is_judged_by_its_own_prompt():
    other = Scene((Thing("triangle", "green", 9.0, 16.0, 4.5), Thing("square", "blue", 22.0, 17.0, 4.5)), "left of")
    pictures = Pictures(np.stack([render(SCENE), render(other)]))
    scorer = ShapesTruth().load("cpu")
    assert list(scorer([PROMPT, caption(other)], pictures).values) == pytest.approx([1.0, 1.0], abs=0.005)
    assert max(scorer([caption(other), PROMPT], pictures).values) < 1


def test_the_toys_reward_is_minus_the_squared_distance_to_the_goal():
    points = torch.tensor([[-1.0, 1.0], [0.0, 1.0], [2.0, -3.0]])
    values = ToyPoint().load("cpu")(["a"] * 3, ToyChain().decode(points, {})).values
    assert values == pytest.approx([0.0, -1.0, -25.0], abs=5e-3)
    nearer = ToyPoint(goal=(2.0, -3.0)).load("cpu")(["a"] * 3, ToyChain().decode(points, {})).values
    assert nearer == pytest.approx([-25.0, -20.0, 0.0], abs=5e-3)
