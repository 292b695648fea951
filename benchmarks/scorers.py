"""Scorers with a known cost: one that only sleeps, and a small network built like CLIP."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drover.common.media.pictures import Pictures
from drover.common.protocols import Scores


@dataclass(frozen=True, slots=True)
class Sleeping:
    """A scorer that sleeps ``call_s`` for a call and ``sample_s`` for a sample, as if it computed on a device."""

    call_s: float
    sample_s: float

    def __call__(self, prompts: Sequence[str], media: Pictures) -> Scores:
        time.sleep(self.call_s + self.sample_s * len(media))
        return Scores([0.0] * len(media))


class TwoTowers(nn.Module):
    """A network that embeds a 64-pixel picture by a transformer over patches, and a prompt by a bag of words."""

    SIDE, PATCH, WIDTH, LAYERS, WORDS = 64, 8, 128, 4, 4096

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, self.WIDTH, self.PATCH, stride=self.PATCH)
        self.places = nn.Parameter(torch.zeros((self.SIDE // self.PATCH) ** 2, self.WIDTH))
        layer = nn.TransformerEncoderLayer(self.WIDTH, 4, 4 * self.WIDTH, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, self.LAYERS, enable_nested_tensor=False)
        self.words = nn.EmbeddingBag(self.WORDS, self.WIDTH, mode="mean")

    def forward(self, pixels: Tensor, words: Tensor, starts: Tensor) -> Tensor:
        """Return the cosines [B] between pictures and prompts.

        ``pixels`` [B, 3, H, W] are in 0..255; ``words`` are the word ids of all prompts in one row, and ``starts`` [B] the
        place of each prompt's first word.
        """
        small = F.interpolate(pixels, (self.SIDE, self.SIDE), mode="bilinear", antialias=True, align_corners=False)
        seen = self.layers(self.patches(small / 127.5 - 1).flatten(2).transpose(1, 2) + self.places).mean(1)
        return F.cosine_similarity(seen, self.words(words, starts))


class TwoTowersScorer:
    """A scorer that gives the cosine of `TwoTowers`. All instances have the same weights."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self._model = TwoTowers().eval()

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str], media: Pictures) -> Scores:
        split = [[sum(word.encode()) % TwoTowers.WORDS for word in prompt.split()] for prompt in prompts]
        starts = np.cumsum([0, *(len(words) for words in split)])[:-1]
        words = torch.tensor([word for words in split for word in words])
        pixels = torch.from_numpy(media.pixels).permute(0, 3, 1, 2).float()
        return Scores(self._model(pixels, words, torch.from_numpy(starts)).tolist())
