"""Recipes whose reward needs packages that drover does not have: ``environment_recipes.py:cow_toy``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.protocols import Scorer, Scores
from drover.deploy.config import RunConfig
from drover.deploy.recipes.toy_ddpo import toy_ddpo
from drover.reward_servers.rewards.toy_point import ToyPoint

STALL_S = 8.0  # shorter than any build
NO_PACKAGE = "drover-has-no-such-package==9"


@dataclass(frozen=True)
class CowSays:
    """Value: the number of characters of cowsay's picture of the prompt."""

    packages: ClassVar[tuple[str, ...]] = ("cowsay==6.1",)
    takes: ClassVar[type[Media]] = Pictures
    name: str = "point"

    def load(self, device: str) -> Scorer:
        import cowsay  # type: ignore[import-not-found]

        return lambda prompts, media: Scores([float(len(cowsay.get_output_string("cow", p))) for p in prompts])


@dataclass(frozen=True)
class CowLikesToo(CowSays):
    """The sum of `ToyPoint` and `CowSays`: a reward that a policy can learn and only this environment can score."""

    def load(self, device: str) -> Scorer:
        cow, point = super().load(device), ToyPoint().load(device)

        def score(prompts: Sequence[str], media: Pictures) -> Scores:
            pairs = zip(cow(prompts, media).values, point(prompts, media).values, strict=True)
            return Scores([says + likes for says, likes in pairs])

        return score


@dataclass(frozen=True)
class Unbuildable(CowSays):
    packages: ClassVar[tuple[str, ...]] = (*CowSays.packages, NO_PACKAGE)


def cow_toy() -> RunConfig:
    return replace(toy_ddpo(), iterations=2, recipe="cow_toy", rewards=(CowLikesToo(),), stall_s=STALL_S)


def unbuildable_toy() -> RunConfig:
    return replace(toy_ddpo(), iterations=2, recipe="unbuildable_toy", rewards=(Unbuildable(),))
