"""Score how evenly the samples of a prompt spread over classes such as skin tones: a reward over sets.

Source: "Large-scale Reinforcement Learning for Diffusion Models" (arXiv 2401.12244), section 4.2: -SP with 16 samples of
a prompt and 4 skin tones, the same for every sample of the set. The paper's classifier is not published; here it is an option.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np

from drover.common.errors import ConfigError, ScoringFailed
from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.protocols import Scores
from drover.reward_servers.parity import leave_one_out, statistical_parity
from drover.reward_servers.serving.sets import members

Judge = Callable[[np.ndarray], list[int | None]]
"""Classifies pixels [N, H, W, 3] uint8: [N] class indices, None where the picture shows none of the classes."""


class Classifier(Protocol):
    """The frozen description of a classifier, such as `models.vision.ImageClassifier` or `worlds.shapes.judges.Tones`."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    def load(self, device: str) -> Judge: ...


@dataclass(frozen=True, slots=True)
class StatisticalParity:
    """Value of every sample: -SP of its set, unitless, from -sqrt(1 - 1/classes) (one class alone) to 0 (parity).

    A perfectly even generator still measures about -0.20 with 16 samples of 4 classes (`parity.uniform_floor`).
    ``rooted=False`` drops the root. ``credit="leave_one_out"`` gives each sample its own effect instead: -SP of the set
    less -SP without the sample, in units of SP. This has the same direction on average with less noise, but is not the paper's.

    A sample that shows none of the classes is masked "unjudged" and left out of the shares; a set with fewer than
    ``least`` others is masked "few".
    """

    takes: ClassVar[type[Media]] = Pictures

    classifier: Classifier
    rooted: bool = True
    credit: Literal["shared", "leave_one_out"] = "shared"
    least: int = 4
    packages: tuple[str, ...] = ()  # the classifier's packages besides transformers, such as timm
    name: str = "statistical_parity"

    def __post_init__(self) -> None:
        classes = self.classifier.classes
        if len(set(classes)) < max(2, len(classes)):
            raise ConfigError(f"parity of the classes {classes} means nothing; name at least two, each once.")
        if self.credit not in ("shared", "leave_one_out"):
            raise ConfigError(f"credit is {self.credit!r}; choose 'shared' or 'leave_one_out'.")
        if self.least < 2:
            raise ConfigError(f"least is {self.least}, but one sample has no parity; choose 2 or more.")

    def load(self, device: str) -> ParityScorer:
        return ParityScorer(self, self.classifier.load(device))


@dataclass(frozen=True, slots=True)
class ParityScorer:
    reward: StatisticalParity
    judge: Judge

    def score_sets(self, prompts: Sequence[str], media: Pictures, sets: Sequence[slice]) -> Scores:
        """The value of each sample. Raises `ScoringFailed` when the sets leave a sample out or share one."""
        together = members(sets, len(media))
        judged = self.judge(media.pixels)
        known = range(len(self.reward.classifier.classes))
        if len(judged) != len(media) or any(index is not None and index not in known for index in judged):
            raise ScoringFailed(
                f"the classifier answered {judged[:8]}..., wanted {len(media)} of 0 to {known[-1]} or None"
            )
        values, reasons = [math.nan] * len(media), [""] * len(media)
        for rows in together:
            credits = self._credits([judged[row] for row in rows])
            for row in rows:
                index = judged[row]
                values[row] = math.nan if index is None else credits[index]
                reasons[row] = "unjudged" if index is None else "few" if math.isnan(values[row]) else ""
        return Scores(values, reasons)

    def _credits(self, judged: Sequence[int | None]) -> list[float]:
        """[classes] value of a member of each class; NaN in a set with too few judged samples."""
        count_of = Counter(judged)
        counts = [count_of[index] for index in range(len(self.reward.classifier.classes))]
        if sum(counts) < self.reward.least:
            return [math.nan] * len(counts)
        if self.reward.credit == "leave_one_out":
            return leave_one_out(counts, rooted=self.reward.rooted)
        return [-statistical_parity(counts, rooted=self.reward.rooted)] * len(counts)
