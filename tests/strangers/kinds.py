"""Sounds, scenes and structures as media: the toy's point sets a tone, a car's path or a tower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from drover.common.media.media import Media
from drover.common.media.scenes import Scenes
from drover.common.media.sounds import Sounds
from drover.common.media.structures import Structures
from drover.common.protocols import Conditioning, Scores
from drover.deploy.config import RunConfig
from drover.deploy.recipes.toy_ddpo import toy_ddpo
from drover.learner.objectives.ddpo import Ddpo
from drover.worlds.plane.policy import ToyChain

RATE, SECONDS = 8000, 0.25


class Heard(ToyChain):
    """The toy as sound: the point's first coordinate is the loudness of a tone of 440 Hz."""

    def decode(self, x0: Tensor, cond: Conditioning) -> Sounds:  # type: ignore[override]
        loudness = torch.sigmoid(x0[:, :1].float()).cpu().numpy()
        tone = np.sin(2 * np.pi * 440 * np.arange(int(RATE * SECONDS)) / RATE)
        return Sounds((loudness * tone)[:, None, :].astype(np.float32), rate=RATE)


class Driven(ToyChain):
    """The toy as scene: one car drives from the origin to the point within 8 steps."""

    def decode(self, x0: Tensor, cond: Conditioning) -> Scenes:  # type: ignore[override]
        way = np.linspace(0, 1, 8)[None, None, :, None] * x0.float().cpu().numpy()[:, None, None, :]
        heading = np.broadcast_to(np.arctan2(way[..., -1:, 1], way[..., -1:, 0])[..., None], (*way.shape[:3], 1))
        speed = np.broadcast_to(np.linalg.norm(way[..., -1:, :], axis=-1, keepdims=True), (*way.shape[:3], 1))
        return Scenes(np.concatenate([way, heading, speed], axis=-1).astype(np.float32), step_s=0.5)


class Built(ToyChain):
    """The toy as structure: the point's first coordinate is the height of a tower of up to 8 blocks."""

    def decode(self, x0: Tensor, cond: Conditioning) -> Structures:  # type: ignore[override]
        height = (torch.sigmoid(x0[:, 0].float()) * 8).round().int().cpu().numpy()
        occupied = np.zeros((len(height), 3, 3, 8), np.uint8)
        for number, blocks in enumerate(height):
            occupied[number, 1, 1, :blocks] = 1
        return Structures(occupied, voxel_m=0.1)


POLICIES: dict[str, tuple[type[ToyChain], type[Any]]] = {
    "sound": (Heard, Sounds), "scene": (Driven, Scenes), "structure": (Built, Structures),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class KindModel:
    kind: str
    adapters: ClassVar[bool] = False
    compute: ClassVar[str] = "float32"

    @property
    def media(self) -> type[Media]:
        return POLICIES[self.kind][1]

    def check(self) -> None: ...

    def build(self, device: str) -> ToyChain:
        return POLICIES[self.kind][0](device)

    def save(self, weights: Mapping[str, Tensor], folder: Path) -> Path:
        return folder


def loudness(sounds: Sounds) -> np.ndarray:
    """Root of the mean square; a quieter tone is better."""
    return -np.sqrt((sounds.waves**2).mean(axis=(1, 2)))


def distance(scenes: Scenes) -> np.ndarray:
    """Of the car's last place from (-1, 1), in metres."""
    return -np.linalg.norm(scenes.states[:, 0, -1, :2] - np.array([-1.0, 1.0]), axis=-1)


def height(structures: Structures) -> np.ndarray:
    """In blocks; a lower tower is better."""
    return -structures.occupied.sum(axis=(1, 2, 3)).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Judge:
    kind: str
    name: str = "judge"

    @property
    def takes(self) -> type[Media]:
        return POLICIES[self.kind][1]

    def load(self, device: str):
        measure = {"sound": loudness, "scene": distance, "structure": height}[self.kind]

        def score(prompts: Sequence[str], media: Any) -> Scores:
            return Scores([float(value) for value in measure(media)])

        return score


def recipe(*, kind: str = "sound", iterations: int = 25) -> RunConfig:
    """Quieter tones, cars that reach a place, or lower towers."""
    config = replace(toy_ddpo(), iterations=iterations, samples=32, max_lag=0)
    return replace(
        config,
        recipe="kinds",
        model=KindModel(kind),
        rewards=(Judge(kind),),
        objective=Ddpo(weights={"judge": 1.0}, clip=0.2, normalise="batch"),
        tasks=(replace(config.tasks[0], rewards=("judge",)),),
        heldout=(replace(config.heldout[0], rewards=("judge",), samples_per_prompt=64),),
    )
