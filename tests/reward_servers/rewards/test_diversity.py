"""Diversity: the mean distance between the samples of a prompt."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from drover.common.errors import ScoringFailed
from drover.common.media.pictures import Pictures
from drover.common.protocols import Reward, SetScorer
from drover.reward_servers.rewards.diversity import Diversity
from drover.worlds.shapes.renderer import render
from drover.worlds.shapes.scenes import random_portrait


def score(media: np.ndarray, *sets: slice) -> tuple[list[float], list[str]]:
    scores = Diversity().load("cpu").score_sets(["a"] * len(media), Pictures(media), sets)
    return list(scores.values), list(scores.reasons)


def flat(*levels: int, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    return np.stack([np.full((*size, 3), level, np.uint8) for level in levels])


def test_a_sample_is_worth_its_mean_distance_to_the_others_and_the_set_its_mean_pairwise_distance():
    values, reasons = score(flat(0, 0, 51, 255), slice(0, 4))
    assert values == pytest.approx([0.4, 0.4, (0.2 + 0.2 + 0.8) / 3, (1 + 1 + 0.8) / 3])
    assert np.mean(values) == pytest.approx(np.mean([0.0, 0.2, 1.0, 0.2, 1.0, 0.8]))
    assert reasons == [""] * 4


def test_black_beside_white_is_1_and_what_is_drawn_twice_is_0():
    assert score(flat(0, 255), slice(0, 2))[0] == [1.0, 1.0]
    picture = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    assert score(picture.repeat(3, axis=0), slice(0, 3))[0] == pytest.approx([0.0] * 3, abs=1e-7)


def test_it_is_the_root_mean_square_of_the_pixels_of_small_pictures():
    media = np.random.default_rng(1).integers(0, 256, (5, 20, 30, 3), dtype=np.uint8)
    pairs = itertools.combinations(media.astype(float) / 255, 2)
    wanted = np.mean([np.sqrt(np.square(one - other).mean()) for one, other in pairs])
    assert np.mean(score(media, slice(0, 5))[0]) == pytest.approx(wanted)


def test_noise_finer_than_a_block_hardly_counts_and_a_thing_that_moves_does():
    rng = np.random.default_rng(2)
    noisy = rng.integers(118, 138, (4, 512, 512, 3), dtype=np.uint8)
    moved = flat(128, 128, 128, 128, size=(512, 512))
    for number, picture in enumerate(moved):
        picture[100:300, 100 * number : 100 * number + 100] = 255
    assert np.mean(score(noisy, slice(0, 4))[0]) < 0.01 < 0.1 < np.mean(score(moved, slice(0, 4))[0])


def test_portraits_of_all_tones_differ_more_than_those_of_one():
    rng = np.random.default_rng(3)
    media = np.stack([render(random_portrait(rng, "doctor", tone)) for tone in (0, 0, 0, 0, 0, 1, 2, 3)])
    values, _ = score(media, slice(0, 4), slice(4, 8))
    assert np.mean(values[4:]) > 1.2 * np.mean(values[:4]) > 0


def test_sets_in_one_call_are_worth_what_they_are_alone_and_a_set_of_one_is_masked():
    media = np.random.default_rng(4).integers(0, 256, (6, 40, 40, 3), dtype=np.uint8)
    values, reasons = score(media, slice(0, 3), slice(3, 5), slice(5, 6))
    assert values[:5] == score(media[:3], slice(0, 3))[0] + score(media[3:5], slice(0, 2))[0]
    assert reasons == [""] * 5 + ["few"] and math.isnan(values[5])


@pytest.mark.parametrize("sets", [(slice(0, 3),), (slice(0, 3), slice(2, 4)), ()])
def test_sets_that_do_not_hold_every_sample_once_lose_the_whole_batch(sets):
    with pytest.raises(ScoringFailed, match="do not hold each of 4 samples once"):
        score(flat(1, 2, 3, 4), *sets)


def test_it_is_a_reward_over_sets():
    assert isinstance(Diversity(), Reward) and isinstance(Diversity().load("cpu"), SetScorer)
    assert (Diversity().name, Diversity().packages) == ("diversity", ())
