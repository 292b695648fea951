"""Score how well an image fits its prompt by CLIP: the cosine of the two embeddings.

Source: CLIPScore (Hessel et al. 2021, arXiv 2104.08718); models of CLIP (arXiv 2103.00020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from drover.common.errors import ConfigError
from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.protocols import Scores
from drover.reward_servers.models.clip import Clip, Precision, check_options, masked

if TYPE_CHECKING:
    from torch import Tensor

Scale = Literal["cosine", "percent", "hessel"]
_SCALES: dict[Scale, Callable[[Tensor], Tensor]] = {
    "cosine": lambda cosine: cosine,
    "percent": lambda cosine: 100 * cosine,
    "hessel": lambda cosine: 2.5 * cosine.clamp(min=0),
}


@dataclass(frozen=True, slots=True)
class ClipScore:
    """Value: the cosine of picture and prompt in -1..1; photographs with their captions get about 0.15 to 0.35.

    ``scale`` ``"percent"`` multiplies it by 100, as most papers print it; ``"hessel"`` is 2.5 max(0, cosine), in 0..2.5.

    Hessel et al. also put "A photo depicts " before each caption; ``prefix`` does so here, and is empty by default.
    Prompts are cut at 77 tokens, the prefix included. A sample whose embedding is not finite is masked as ``nan``.
    """

    checkpoint: str = "openai/clip-vit-large-patch14"
    scale: Scale = "cosine"
    prefix: str = ""
    batch_size: int = 64  # images at a time; bounds the memory of the device
    precision: Precision = "float32"
    name: str = "clip_score"
    packages: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[type[Media]] = Pictures

    def __post_init__(self) -> None:
        check_options(self.checkpoint, self.batch_size, self.precision)
        if self.scale not in get_args(Scale):
            raise ConfigError(f"scale is {self.scale!r}; use one of {', '.join(get_args(Scale))}")

    def load(self, device: str) -> ClipScorer:
        clip = Clip.load(self.checkpoint, device, batch_size=self.batch_size, precision=self.precision)
        return ClipScorer(clip, self.scale, self.prefix)


@dataclass(frozen=True, slots=True)
class ClipScorer:
    clip: Clip
    scale: Scale
    prefix: str

    def __call__(self, prompts: Sequence[str], media: Pictures) -> Scores:
        cosines = self.clip.cosines([self.prefix + prompt for prompt in prompts], media.pixels)
        return masked(_SCALES[self.scale](cosines))
