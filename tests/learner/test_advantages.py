import numpy as np
import pytest

from drover.learner.advantages import standardise, standardise_centred

ALL = np.ones(4, bool)


def test_two_ranks_values_with_one_nan_give_the_golden_advantages():
    """Gathered [1, 2] and [NaN, 4]; the standard deviation is the unbiased one, 1.5275."""
    values = np.array([1, 2, np.nan, 4])
    got = standardise(values, np.isfinite(values), clip=10.0)
    assert got == pytest.approx([-0.87287, -0.21822, 0.0, 1.09109], abs=5e-6)


def test_equal_values_give_zero_and_not_nan():
    assert standardise(np.full(4, 7.25), ALL, clip=10.0).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("size", [3, 6, 7, 15, 24])
@pytest.mark.parametrize("value", [0.1, 0.7, 1 / 3])
def test_equal_values_give_zero_to_the_bit_whatever_rounding_leaves(size, value):
    values, valid = np.full(size + 1, value), np.arange(size + 1) > 0
    assert not standardise(values, valid, clip=10.0).any()
    (first, _) = standardise_centred([values, np.array([0.0, 1.0])], [valid, np.ones(2, bool)], clip=10.0)
    assert not first.any()


def test_integers_are_not_truncated():
    assert standardise(np.array([1, 2, 3, 10]), ALL, clip=10.0) == pytest.approx(
        standardise(np.array([1.0, 2.0, 3.0, 10.0]), ALL, clip=10.0)
    )
    assert standardise(np.array([0, 1, 2, 3]), ALL, clip=10.0)[1] == pytest.approx(-0.387298, abs=1e-6)


def test_unit_and_offset_of_the_values_do_not_matter():
    values = np.array([0.1, 0.5, 0.2, 0.9])
    assert standardise(1000 * values - 3, ALL, clip=10.0) == pytest.approx(
        standardise(values, ALL, clip=10.0), rel=1e-5
    )


def test_an_outlier_is_cut_at_the_clip_and_the_others_are_not():
    values = np.array([0.0] * 99 + [1000.0])
    got = standardise(values, np.ones(100, bool), clip=5.0)
    assert got[-1] == 5.0
    assert got[0] == pytest.approx(-0.1, abs=1e-6)


@pytest.mark.parametrize("known", [[], [2]])
def test_fewer_than_two_valid_values_teach_nothing(known):
    valid = np.isin(np.arange(4), known)
    assert standardise(np.array([5.0, np.nan, 3.0, np.inf]), valid, clip=10.0).tolist() == [0, 0, 0, 0]
