"""Clips with one judgement per frame: each frame's weight multiplies the density of that frame alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from drover.common.diffusion.noising import DiscreteSchedule
from drover.common.media.clips import Clips
from drover.common.media.media import Media
from drover.common.protocols import Conditioning, Prediction, Scores
from drover.deploy.config import RunConfig
from drover.deploy.recipes.toy_ddpo import toy_ddpo
from drover.learner.advantages import standardise
from drover.learner.examples import Credit, MeasuredGroup, StepBatch
from drover.learner.losses import clipped_ratio
from drover.learner.objective import BatchKind, LossOutput, Models, Needs

FRAMES, STEPS = 3, 5
CONTRACTION, DRIFT = 0.8, 0.35
RANGE, LEVELS = 8.0, 255 * 255
GOALS = np.array([[-1.0, 1.0], [3.0, 1.0], [1.0, -2.0]])  # of each frame


class FrameChain:
    """A policy over a point per frame, [3, 2]; each frame moves as the toy's point does, by drifts of its own."""

    latent_shape = (FRAMES, 2)
    parts = FRAMES
    empty = ""

    def __init__(self) -> None:
        self.schedule = DiscreteSchedule(torch.full((STEPS,), CONTRACTION**2, dtype=torch.float64))
        self.trainable: nn.Module = Drifts()

    def encode(self, names: Sequence[str]) -> Conditioning:
        return {"text": torch.zeros(len(names), 1)}

    def predict(self, x: Tensor, time: Tensor, cond: Conditioning) -> Prediction:
        x0 = x.float() + self.trainable(time) / CONTRACTION
        return Prediction(x0=x0, noise=(x - CONTRACTION * x0) / (1 - CONTRACTION**2) ** 0.5)

    def output(self, x: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        return self.predict(x, time, cond).x0

    def target(self, x0: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        return x0

    def decode(self, x0: Tensor, cond: Conditioning) -> Clips:
        """Two pixels a frame; a coordinate's high and low digit are red and green."""
        share = (x0.detach().float().clamp(-RANGE, RANGE) + RANGE) / (2 * RANGE)
        whole = (share * LEVELS).round().int().numpy()
        frames = np.zeros((*whole.shape[:2], 1, 2, 3), np.uint8)
        frames[:, :, 0, :, 0], frames[:, :, 0, :, 1] = whole // 255, whole % 255
        return Clips(frames, fps=8.0)

    def to_latents(self, media: Media) -> Tensor:
        assert isinstance(media, Clips)
        return torch.from_numpy(points(media)).float()


class Drifts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.zeros(STEPS, FRAMES, 2))

    def forward(self, time: Tensor) -> Tensor:
        return DRIFT + self.b[time.long()]


def points(clips: Clips) -> np.ndarray:
    """[N, FRAMES, 2] coordinates."""
    whole = clips.frames[:, :, 0, :, 0].astype(np.int64) * 255 + clips.frames[:, :, 0, :, 1]
    return whole / LEVELS * 2 * RANGE - RANGE


@dataclass(frozen=True, slots=True)
class FrameModel:
    media: ClassVar[type[Media]] = Clips
    adapters: ClassVar[bool] = False
    compute: ClassVar[str] = "float32"

    def check(self) -> None: ...

    def build(self, device: str) -> FrameChain:
        return FrameChain()

    def save(self, weights: Mapping[str, Tensor], folder: Path) -> Path:
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "toy.safetensors")
        return folder / "toy.safetensors"


@dataclass(frozen=True, slots=True)
class FrameDistance:
    """Minus the squared distance of each frame's point from that frame's goal; the value is the mean over frames."""

    name: str = "frames"
    takes: ClassVar[type[Media]] = Clips

    def load(self, device: str):
        def score(prompts: Sequence[str], media: Clips) -> Scores:
            parts = -((points(media) - GOALS) ** 2).sum(-1).astype(np.float32)
            return Scores([float(value) for value in parts.mean(axis=1)], parts=parts)

        return score


@dataclass(frozen=True, slots=True)
class FrameGradient:
    """A clipped policy gradient whose advantages and ratios are taken per frame."""

    clip: float = 0.2
    learns_from: ClassVar[BatchKind] = StepBatch
    watched: ClassVar[tuple[str, ...]] = ("ratio",)
    needs: ClassVar[Needs] = Needs(rewards=("frames",))

    def credit(self, groups: Sequence[MeasuredGroup]) -> Credit:
        measured = [group.rewards["frames"] for group in groups]
        parts = [one.parts for one in measured if one.parts is not None]
        everything, valid = np.concatenate(parts), np.concatenate([one.valid for one in measured])
        weights = np.stack([standardise(column, valid, clip=5.0) for column in everything.T], axis=1)
        ends = np.cumsum([len(one.valid) for one in measured])[:-1]
        return Credit.per_sample(np.split(weights, ends), [one.valid for one in measured])

    def loss(self, models: Models, batch: StepBatch) -> LossOutput:
        policy = models.policy
        prediction = policy.predict(batch.x, batch.time, batch.cond)
        step = models.kernel.step(policy.schedule, batch.x, batch.time, batch.next_time, prediction)
        log_ratio = step.log_prob(batch.x_next, parts=batch.weight.shape[1]) - batch.log_prob
        total = clipped_ratio(log_ratio, batch.weight, clip=self.clip).sum()
        return LossOutput(total, {"ratio": log_ratio.detach().exp().mean(dim=1).sum()})


def recipe(*, iterations: int = 40) -> RunConfig:
    """Every frame learns its own goal from its own judgement."""
    config = replace(toy_ddpo(), iterations=iterations, samples=32, max_lag=0)
    return replace(
        config,
        recipe="clips",
        model=FrameModel(),
        rewards=(FrameDistance(),),
        objective=FrameGradient(),
        tasks=(replace(config.tasks[0], rewards=("frames",)),),
        heldout=(replace(config.heldout[0], rewards=("frames",), samples_per_prompt=64),),
    )
