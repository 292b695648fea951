"""Score by an object detector whether both objects of the prompt are in the picture and, on request, in the named relation.

Source: "Large-scale Reinforcement Learning for Diffusion Models" (arXiv 2401.12244), section 4.3: the mean over the
prompt's objects of the detector's confidence, prompts "object A, relation, object B". The paper does not say what an
absent object counts, nor which of several detections: here an absent object counts 0, and the most confident detection counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from drover.common.media.media import Media
from drover.common.media.pictures import Pictures
from drover.common.protocols import Scores
from drover.reward_servers.models.vision import Detections, Found, check_names

RELATIONS = ("and", "next to", "near", "on side of", "beside")  # the paper's, which only ask for both objects

# The unit vector from the second object to the first, x to the right and y downwards.
DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}

_LINKS = "|".join((*RELATIONS, *DIRECTIONS))
_TEMPLATE = re.compile(rf"(?:an? |the )?(\w.*?) (?:(?:on|to) the )?({_LINKS}) (?:an? |the )?(\w.*)")


class Detector(Protocol):
    """A loaded object detector."""

    @property
    def names(self) -> frozenset[str] | None:
        """The names that it can detect, in lower case; None: any name."""

    def find(self, pixels: np.ndarray, names: Sequence[tuple[str, ...]]) -> list[Detections | None]:
        """[N] detections of names[i] in pixels[i] [H, W, 3] uint8; None where the detector failed."""


class DetectorSource(Protocol):
    """The frozen description of a detector, such as `drover.reward_servers.models.vision.ObjectDetector`."""

    def load(self, device: str) -> Detector: ...


@dataclass(frozen=True, slots=True)
class Composition:
    """The two objects that a prompt asks for, and their relation; ``Composition("cat", "left of", "fire truck")``."""

    first: str
    link: str
    second: str


@dataclass(frozen=True, slots=True)
class ObjectComposition:
    """Value in [0, 1]: mean confidence of the two objects, an absent one 0. Confidences 0.8 and none make 0.4.

    ``geometry=True`` also uses the boxes' centres, where the prompt says left of, right of, above or below: the value is
    multiplied by (1 + c) / 2, with c the cosine between the asked and the found direction, 0 if negative or if an object is
    absent.

    ``objects`` are the names that prompts may use; the detector must know them all, else `load` raises `ConfigError`.
    Without them prompts may use all names that the detector knows. A prompt without two of the names in the template is masked
    "prompt", and a picture for which the detector's output is not finite is masked "detector".
    """

    takes: ClassVar[type[Media]] = Pictures

    detector: DetectorSource
    geometry: bool = False
    objects: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()  # the detector's packages besides transformers, such as scipy or timm
    name: str = "object_composition"

    def load(self, device: str) -> CompositionScorer:
        """Load the detector. Raises `ConfigError` when it cannot be opened or does not know one of ``objects``."""
        detector = self.detector.load(device)
        objects = frozenset(name.lower() for name in self.objects)
        if detector.names is not None:
            check_names(sorted(objects), detector.names, str(self.detector))
        return CompositionScorer(detector, objects or detector.names, self.geometry)


@dataclass(frozen=True, slots=True)
class CompositionScorer:
    detector: Detector
    objects: frozenset[str] | None  # the names that prompts may use; None: any
    geometry: bool

    def __call__(self, prompts: Sequence[str], media: Pictures) -> Scores:
        asked = [parse(prompt, self.objects) for prompt in prompts]
        rows = [row for row, composition in enumerate(asked) if composition is not None]
        names = [(each.first, each.second) for each in asked if each is not None]
        found = dict(zip(rows, self.detector.find(media.pixels[rows], names) if rows else [], strict=True))
        values = [
            math.nan if composition is None or (here := found[row]) is None else self._value(composition, here)
            for row, composition in enumerate(asked)
        ]
        reasons = [
            "prompt" if composition is None else "detector" if math.isnan(value) else ""
            for composition, value in zip(asked, values, strict=True)
        ]
        return Scores(values, reasons)

    def _value(self, asked: Composition, found: Mapping[str, Found]) -> float:
        first, second = found.get(asked.first), found.get(asked.second)
        confidence = sum(each.confidence for each in (first, second) if each is not None) / 2
        if self.geometry and asked.link in DIRECTIONS:
            return confidence * (1 + agreement(asked.link, first, second)) / 2
        return confidence


def agreement(link: str, first: Found | None, second: Found | None) -> float:
    """Cosine in [0, 1] between the asked direction and the one from the second's centre to the first's; 0 without both."""
    if first is None or second is None:
        return 0.0
    dx, dy = first.x - second.x, first.y - second.y
    across, down = DIRECTIONS[link]
    return max(0.0, (dx * across + dy * down) / max(math.hypot(dx, dy), 1e-6))


def parse(prompt: str, objects: Collection[str] | None = None) -> Composition | None:
    """ "A cat to the left of a fire truck." -> cat, left of, fire truck; None outside the template or ``objects``."""
    match = _TEMPLATE.fullmatch(" ".join(prompt.lower().split()).rstrip(".!"))
    if match is None or (objects is not None and not {match[1], match[3]} <= set(objects)):
        return None
    return Composition(match[1], match[2], match[3])
