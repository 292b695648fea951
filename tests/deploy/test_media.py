"""Runs whose model draws something else than pictures: the whole service in one process, from the actor to samples.png."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from torch import Tensor

from drover.common.media.clips import Clips
from drover.common.media.kinds import KINDS
from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.media.scenes import Scenes
from drover.common.media.sounds import Sounds
from drover.common.media.structures import Structures
from drover.common.prompts import Prompt
from drover.common.protocols import Conditioning, Policy, Scorer, Scores
from drover.reward_servers.rewards.toy_point import ToyPoint
from drover.worlds.plane.model import ToyModel
from drover.worlds.plane.policy import ToyChain, read_points
from tests.deploy.in_place import small, train

GOAL = np.array([-1.0, 1.0])


def as_clips(points: np.ndarray) -> Media:
    levels = ((points.clip(-8, 8) + 8) * 15.9).round().astype(np.uint8)
    return Clips(np.broadcast_to(levels[:, :, None, None, None], (len(points), 2, 4, 4, 3)).copy(), fps=2.0)


def as_structures(points: np.ndarray) -> Media:
    heights = ((points.clip(-8, 8) + 8) * 4).round().astype(int)
    return Structures((np.arange(64) < heights[:, :, None, None]).astype(np.uint8), voxel_m=0.1)


DRAW: dict[str, Callable[[np.ndarray], Media]] = {
    "clip": as_clips,
    "sound": lambda points: Sounds(points[:, :, None].repeat(300, axis=2) / 8, rate=8000),
    "scene": lambda points: Scenes(np.tile(points[:, None, None], (1, 2, 3, 2)), step_s=0.5),
    "structure": as_structures,
}
READ: dict[str, Callable[[object], np.ndarray]] = {
    "clip": lambda media: media.frames[:, :, 0, 0, 0] / 15.9 - 8,
    "sound": lambda media: media.waves[:, :, 0] * 8,
    "scene": lambda media: media.states[:, 0, 0, :2],
    "structure": lambda media: media.occupied[:, :, 0].sum(axis=-1) / 4 - 8,
}


@dataclass(frozen=True)
class Drawing(ToyModel):
    """The toy whose points become media of that kind."""

    kind: str

    @property
    def media(self) -> type[Media]:  # type: ignore[override]
        return KINDS[self.kind]

    def build(self, device: str) -> Policy:
        return DrawingChain(self.kind)


class DrawingChain(ToyChain):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def decode(self, x0: Tensor, cond: Conditioning) -> Media:
        assert len(cond["text"]) == len(x0), "each sample comes with its condition"
        return DRAW[self.kind](x0.numpy())


@dataclass(frozen=True)
class Nearness:
    """Minus the squared distance of the point to the goal, read from media of that kind."""

    kind: str
    name: str = "point"
    packages: ClassVar[tuple[str, ...]] = ()

    @property
    def takes(self) -> type[Media]:
        return KINDS[self.kind]

    def load(self, device: str) -> Scorer:
        def score(prompts: Sequence[str], media: Media) -> Scores:
            assert isinstance(media, KINDS[self.kind])
            return Scores((-np.square(READ[self.kind](media) - GOAL).sum(axis=-1)).tolist())

        return score


@dataclass(frozen=True)
class Wished(ToyPoint):
    """Minus the squared distance to the goal that each prompt's fields name. Says of every sample which goal that was."""

    fields: ClassVar[tuple[str, ...]] = ("goal",)

    def load(self, device: str) -> Scorer:
        def score(prompts: Sequence[Prompt], media: Pictures) -> Scores:
            goals = np.array([prompt.fields["goal"] for prompt in prompts])
            values = -np.square(read_points(media) - goals).sum(axis=-1)
            return Scores(values.tolist(), parts=goals.astype(np.float32))

        return score


def test_a_reward_reads_the_fields_of_training_and_held_out_prompts(tmp_path: Path) -> None:
    prompts = (Prompt("far", {"goal": [4.0, 4.0]}), Prompt("near", {"goal": [0.5, 0.5]}))
    (task,), (held,) = small().tasks, small().heldout
    heldout = (replace(held, prompts=prompts[:1]), replace(held, name="near", prompts=prompts[1:]))
    tasks = (replace(task, prompts=prompts[:1]),)
    done = train(small(iterations=10, rewards=(Wished(),), tasks=tasks, heldout=heldout), tmp_path)
    before, after = done.summary["reward_before"], done.summary["reward_after"]
    assert after["anywhere/point"] > before["anywhere/point"] + 1 and after["near/point"] < before["near/point"]


@pytest.mark.parametrize("kind", DRAW)
def test_a_model_that_draws_other_media_learns_and_is_shown_before_and_after(tmp_path: Path, kind: str) -> None:
    done = train(small(iterations=10, model=Drawing(kind), rewards=(Nearness(kind),)), tmp_path)
    assert done.ended == "finished"
    assert done.summary["reward_after"]["anywhere/point"] > done.summary["reward_before"]["anywhere/point"] + 1
    done.conclude()
    assert done.folder.samples.read_bytes().startswith(b"\x89PNG")
