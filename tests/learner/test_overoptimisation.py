import json

import pytest

from drover.common.errors import ConfigError
from drover.learner.overoptimisation import Estimate, Verdict, Watch

WATCH = Watch(truth="taste", proxy="learned", stop=True, patience=2)


def evaluation(truth: float, proxy: float, *, std: float = 0.1, count: int = 100) -> dict[str, float]:
    """The scalars of an evaluation, whose means have by default a standard error of 0.01."""
    means = {"taste": truth, "learned": proxy}
    return {
        f"heldout/{name}/{what}": value
        for name, mean in means.items()
        for what, value in (("mean", mean), ("std", std), ("count", float(count)))
    }


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


def test_rises_and_their_gap_are_told_in_standard_deviations_of_the_first_evaluation():
    verdict = Verdict()
    assert set(verdict.hear(WATCH, evaluation(0.5, -3.0)).values()) == {0.0}
    found = verdict.hear(WATCH, evaluation(0.45, -2.7, std=7.0))
    assert found == pytest.approx(
        {
            "overoptimisation/truth": -0.5,
            "overoptimisation/proxy": 3.0,
            "overoptimisation/gap": 3.5,
            "overoptimisation/strikes": 0.0,
        }
    )


def test_an_evaluation_without_one_of_the_two_is_passed_over():
    verdict = Verdict()
    verdict.hear(WATCH, evaluation(0.5, 0.75))
    assert verdict.hear(WATCH, {"heldout/taste/mean": 0.1}) == {}
    assert verdict.best == (Estimate(0.5, 0.1, 100.0), Estimate(0.75, 0.1, 100.0))


def test_where_the_first_samples_were_all_worth_the_same_there_is_no_gap_but_strikes_are_counted():
    verdict = Verdict()
    assert verdict.hear(WATCH, evaluation(0.5, 0.0, std=0.0)) == {"overoptimisation/strikes": 0.0}
    assert verdict.hear(WATCH, evaluation(0.4, 1.0, std=0.0)) == {"overoptimisation/strikes": 1.0}


def test_a_verdict_goes_on_where_it_was_saved():
    verdict = Verdict()
    for truth, proxy in ((0.5, 0.0), (0.6, 1.0), (0.5, 2.0)):
        verdict.hear(WATCH, evaluation(truth, proxy))
    restored = Verdict.restored(json.loads(json.dumps(verdict.saved())))
    assert restored == verdict and restored.hear(WATCH, evaluation(0.4, 3.0))["overoptimisation/strikes"] == 2
    assert Verdict.restored(json.loads(json.dumps(Verdict().saved()))) == Verdict()


@pytest.mark.parametrize("wrong", [{"patience": 0}, {"margin": -1.0}, {"proxy": "taste"}])
def test_a_watch_that_cannot_mean_anything_is_refused(wrong):
    with pytest.raises(ConfigError, match="a watch compares two rewards"):
        Watch(**{"truth": "taste", "proxy": "learned", **wrong})
