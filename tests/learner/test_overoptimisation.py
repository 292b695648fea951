import pytest

from common.errors import ConfigError
from learner.overoptimisation import Verdict, Watch

WATCH = Watch(truth="taste", proxy="learned", stop=True, patience=2)


def evaluation(truth: float, proxy: float, *, std: float = 0.1, count: int = 100) -> dict[str, float]:
    """Its standard error is 0.01."""
    scalars = {"heldout/taste/mean": truth, "heldout/learned/mean": proxy}
    return scalars | {"heldout/taste/std": std, "heldout/taste/count": float(count)}


def strikes(*pairs: tuple[float, float]) -> list[float]:
    verdict = Verdict()
    return [verdict.hear(WATCH, evaluation(*pair))["overoptimisation/strikes"] for pair in pairs]


def test_truth_that_falls_while_the_proxy_rises_counts_evaluation_by_evaluation():
    assert strikes((0.5, 0.0), (0.6, 1.0), (0.5, 2.0), (0.4, 3.0), (0.4, 3.5)) == [0, 0, 1, 2, 3]


def test_both_rising_and_both_falling_count_nothing():
    assert strikes((0.5, 0.0), (0.6, 1.0), (0.7, 2.0)) == [0, 0, 0]
    assert strikes((0.5, 3.0), (0.4, 2.0), (0.3, 1.0)) == [0, 0, 0]


def test_a_fall_within_the_noise_of_the_evaluation_counts_nothing_and_recovery_starts_anew():
    assert strikes((0.5, 0.0), (0.48, 1.0)) == [0, 0]  # 2 standard errors of a difference are 0.028
    assert strikes((0.5, 0.0), (0.4, 1.0), (0.49, 2.0), (0.4, 3.0)) == [0, 1, 0, 1]


def test_the_gap_is_reported_and_an_evaluation_without_one_of_the_two_is_passed_over():
    verdict = Verdict()
    assert verdict.hear(WATCH, evaluation(0.5, 0.75))["overoptimisation/gap"] == 0.25
    assert verdict.hear(WATCH, {"heldout/taste/mean": 0.1}) == {}
    assert verdict.best == (0.5, 0.01, 0.75)


@pytest.mark.parametrize("wrong", [{"patience": 0}, {"margin": -1.0}, {"proxy": "taste"}])
def test_a_watch_that_cannot_mean_anything_is_refused(wrong):
    with pytest.raises(ConfigError, match="a watch compares two rewards"):
        Watch(**{"truth": "taste", "proxy": "learned", **wrong})
