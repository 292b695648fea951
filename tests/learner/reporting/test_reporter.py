"""Reports of an iteration: means over its optimiser steps, and only numbers that there are."""

from __future__ import annotations

import pytest

from drover.learner.reporting.reporter import Updated
from drover.learner.step import PartStats, StepStats


def step(loss: float, norm: float, *, beside: float | None = None, **watched: float) -> StepStats:
    extra = () if beside is None else (PartStats(beside, {}),)
    return StepStats((*extra, PartStats(loss, watched)), norm)


def test_numbers_are_means_over_all_steps_of_the_iteration_and_the_first_ratio_is_of_the_first() -> None:
    told = Updated([step(1.0, 2.0, ratio=1.0), step(3.0, 6.0, ratio=1.2)], None, [0, 1, 1], {}).scalars()
    assert told["loss"] == 2.0 and told["grad_norm"] == 4.0
    assert told["ratio"] == pytest.approx(1.1) and told["ratio_first"] == 1.0
    assert told["lag_max"] == 1.0 and told["lag_mean"] == pytest.approx(2 / 3)


def test_a_method_without_a_ratio_reports_none() -> None:
    told = Updated([step(0.7, 1.0, accuracy=0.5)], None, [0], {}).scalars()
    assert told["accuracy"] == 0.5
    assert not {"ratio", "ratio_first", "clip_fraction", "clip_fraction_first"} & told.keys()


def test_an_iteration_without_samples_or_steps_has_no_numbers_of_them() -> None:
    assert Updated([], None, [], {"learn_s": 0.5}).scalars() == {"learn_s": 0.5}


def test_files_are_told_beside_samples_as_a_step_of_their_own_and_alone() -> None:
    beside = Updated([step(1.0, 2.0, beside=0.25, ratio=1.0)], None, [0], {}).scalars()
    assert beside["files/loss"] == 0.25 and beside["loss"] == 1.0
    own = Updated([step(1.0, 2.0, ratio=1.0)], step(0.5, 8.0), [0], {}).scalars()
    assert (own["files/loss"], own["files/grad_norm"], own["files/grad_ratio"]) == (0.5, 8.0, 4.0)
