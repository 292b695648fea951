"""The contract of rewards: they name their media and unit; a score depends on its own sample, and is masked, never zero."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError, dataclass, is_dataclass
from typing import Any

import numpy as np
import pytest

from drover.common.media.kinds import KINDS
from drover.common.media.media import Media, rows
from drover.common.media.pictures import Pictures
from drover.common.prompts import Prompt
from drover.common.protocols import Reward, Scores, SetScorer
from drover.reward_servers import rewards as package
from drover.reward_servers.rewards.diversity import Diversity
from drover.reward_servers.rewards.http_reward import HttpReward
from drover.reward_servers.rewards.jpeg_size import JpegSize
from drover.reward_servers.rewards.learned_preference import LearnedPreference
from drover.reward_servers.rewards.object_composition import ObjectComposition
from drover.reward_servers.rewards.shapes_taste import ShapesTaste
from drover.reward_servers.rewards.shapes_truth import ShapesTruth
from drover.reward_servers.rewards.statistical_parity import StatisticalParity
from drover.reward_servers.rewards.toy_point import ToyPoint
from drover.worlds.shapes import PREFERENCE
from drover.worlds.shapes.judges import Tones
from drover.worlds.shapes.prompts import portrait_prompt
from drover.worlds.shapes.renderer import render
from drover.worlds.shapes.scenes import random_portrait
from tests.contracts.walk import classes

FOUND = sorted(classes(package, "takes", "load"), key=lambda kind: kind.__name__)


@dataclass(frozen=True)
class NoDetector:
    """A placeholder for a detector; no test here loads it."""

    def load(self, device: str) -> Any: ...


# The makers of rewards that need arguments.
MADE: dict[type, Callable[[], Reward]] = {
    HttpReward: lambda: HttpReward("far", "https://scores.example/score"),
    LearnedPreference: lambda: LearnedPreference(PREFERENCE),
    ObjectComposition: lambda: ObjectComposition(NoDetector()),
    StatisticalParity: lambda: StatisticalParity(Tones()),
}
# The rewards that score on any machine; the others are tested with models of their own, or in environments of their own.
SMALL = [kind for kind in FOUND if kind in (Diversity, JpegSize, LearnedPreference, ShapesTaste, ShapesTruth,
                                            StatisticalParity, ToyPoint)]  # fmt: skip
OVER_SETS = (Diversity, StatisticalParity)
reward_of = pytest.mark.parametrize("kind", FOUND, ids=lambda kind: kind.__name__)
small_one = pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.__name__)


def made(kind: type) -> Reward:
    return MADE.get(kind, kind)()


@reward_of
def test_it_is_a_frozen_description_with_a_name_and_a_kind_of_media(kind: type) -> None:
    reward = made(kind)
    assert isinstance(reward, Reward) and is_dataclass(reward) and made(kind) == reward
    assert re.fullmatch(r"[a-z][a-z0-9_]*", reward.name)
    assert KINDS[reward.takes.kind] is reward.takes
    with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
        reward.name = "other"  # type: ignore[misc]


@reward_of
def test_its_docstring_says_what_its_numbers_are(kind: type) -> None:
    assert re.search(r"\b(unit|value)\b", str(kind.__doc__), re.IGNORECASE), "say the unit and range of its value"


@reward_of
def test_its_packages_are_pip_requirements(kind: type) -> None:
    packages = getattr(made(kind), "packages", ())
    assert isinstance(packages, tuple) and all(re.match(r"[A-Za-z0-9][\w.-]*", one) for one in packages)


def portraits(count: int) -> tuple[list[Prompt], Media]:
    rng = np.random.default_rng(0)
    pictures = [render(random_portrait(rng, "doctor", number % 4)) for number in range(count)]
    return [Prompt(portrait_prompt("doctor"))] * count, Pictures(np.stack(pictures))


def samples_of(kind: type, count: int) -> tuple[list[Prompt], Media]:
    if kind is ToyPoint:
        pixels = np.random.default_rng(0).integers(100, 156, (count, 1, 2, 3), dtype=np.uint8)
        return [Prompt("anywhere")] * count, Pictures(pixels)
    return portraits(count)


def scored(kind: type, prompts: Sequence[Prompt], media: Media) -> Scores:
    scorer = made(kind).load("cpu")
    if isinstance(scorer, SetScorer):
        return scorer.score_sets(prompts, media, [slice(0, len(media))])
    return scorer(prompts, media)


@small_one
def test_it_gives_each_sample_a_finite_number_or_a_word(kind: type) -> None:
    prompts, media = samples_of(kind, 8)
    scores = scored(kind, prompts, media)
    reasons = scores.reasons or [""] * 8
    assert len(scores.values) == len(reasons) == 8 and list(reasons).count("") == 8
    assert all(math.isfinite(value) for value in scores.values)


@pytest.mark.parametrize("kind", [kind for kind in SMALL if kind not in OVER_SETS], ids=lambda kind: kind.__name__)
def test_a_sample_is_worth_the_same_whatever_is_scored_beside_it(kind: type) -> None:
    prompts, media = samples_of(kind, 8)
    together = list(scored(kind, prompts, media).values)
    alone = [scored(kind, prompts[row : row + 1], rows(media, slice(row, row + 1))).values[0] for row in range(8)]
    assert alone == pytest.approx(together, abs=1e-4)


@pytest.mark.parametrize("kind", [ShapesTaste, LearnedPreference], ids=lambda kind: kind.__name__)
def test_a_prompt_that_it_cannot_read_is_masked_and_never_zero(kind: type) -> None:
    _, media = portraits(2)
    scores = scored(kind, [Prompt("zwölf Boxkämpfer"), Prompt(portrait_prompt("doctor"))], media)
    assert math.isnan(scores.values[0]) and math.isfinite(scores.values[1])
    unread, read = scores.reasons or ()
    assert unread != "" == read
