import numpy as np
import pytest

from drover.common.media.pictures import Pictures
from drover.reward_servers.rewards.jpeg_size import JpegSize, kilobytes

CONSTANT = np.full((32, 32, 3), 128, np.uint8)
NOISE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def score(prefer, *images):
    return list(JpegSize(prefer).load("cpu")(["a"] * len(images), Pictures(np.stack(images))).values)


def test_a_constant_picture_of_32_by_32_takes_two_thirds_of_a_kilobyte():
    """Headers and tables, and next to nothing for blocks without detail. The margin is for other builds of libjpeg."""
    assert kilobytes(CONSTANT) == pytest.approx(0.641, abs=0.05)


def test_noise_takes_almost_three_times_as_much():
    assert kilobytes(NOISE) == pytest.approx(1.835, abs=0.1)


def test_the_size_depends_on_the_picture_alone_and_not_on_what_is_scored_beside_it():
    assert score("large", NOISE, CONSTANT) == [kilobytes(NOISE), kilobytes(CONSTANT)] == score("large", NOISE, CONSTANT)


def test_small_and_large_are_one_value_with_two_signs():
    small, large = score("small", NOISE, CONSTANT), score("large", NOISE, CONSTANT)
    assert small == [-value for value in large]
    assert small[1] > small[0] and large[0] > large[1]


def test_more_detail_is_a_larger_file():
    steps = [np.clip(128 + scale * (NOISE.astype(float) - 128), 0, 255).astype(np.uint8) for scale in (0, 0.1, 0.4, 1)]
    sizes = score("large", *steps)
    assert sizes == sorted(sizes) and len(set(sizes)) == 4


def test_noise_below_half_a_level_is_quantised_away_before_it_is_measured():
    """A policy's pictures have 8 bits a channel: a change that rounds to the same levels has the same size."""
    faint = np.rint(128 + 0.4 * (NOISE / 255 - 0.5)).astype(np.uint8)
    assert kilobytes(faint) == kilobytes(CONSTANT)


def test_the_rewards_have_names_of_their_own():
    assert (JpegSize("small").name, JpegSize("large").name) == ("jpeg_small", "jpeg_large")
