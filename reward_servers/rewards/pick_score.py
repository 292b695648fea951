"""Score how much people would prefer an image for its prompt, by a CLIP-H fitted to the choices of Pick-a-Pic.

Source: Pick-a-Pic (arXiv 2305.01569), section 4: the model's learned scale times the cosine of image and prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.protocols import Scores
from drover.reward_servers.models.clip import Clip, Precision, check_options, masked


@dataclass(frozen=True, slots=True)
class PickScore:
    """Unit: logits of a choice between two pictures of one prompt, exp(logit_scale) cosine: a difference d means odds of e^d.

    The published scale is about 100, and generated pictures get about 17 to 25. Only differences under one prompt mean
    anything.

    Prompts are cut at 77 tokens. A sample whose embedding is not finite is masked as ``nan``.
    """

    checkpoint: str = "yuvalkirstain/PickScore_v1"
    batch_size: int = 64  # images at a time; bounds the memory of the device
    precision: Precision = "float32"
    name: str = "pick_score"
    packages: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[type[Media]] = Pictures

    def __post_init__(self) -> None:
        check_options(self.checkpoint, self.batch_size, self.precision)

    def load(self, device: str) -> PickScorer:
        return PickScorer(Clip.load(self.checkpoint, device, batch_size=self.batch_size, precision=self.precision))


@dataclass(frozen=True, slots=True)
class PickScorer:
    clip: Clip

    def __call__(self, prompts: Sequence[str], media: Pictures) -> Scores:
        return masked(self.clip.logit_scale * self.clip.cosines(prompts, media.pixels))
