"""Read the things, their places and the skin tone from a picture without a neural network, and score it for a prompt.

A pixel of a scene counts as a blend of the background and one colour: the colour whose line from
the background passes nearest. It is inside a thing from a share of one half on. So antialiased, blurred and noisy
edges are read as edges and not as a third colour. A shape is the outline that overlaps best with
the connected pixels, at equal centre and area.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from drover.worlds.shapes import prompts
from drover.worlds.shapes.blobs import blobs, grown, moments, overlap, unpack, without_rim
from drover.worlds.shapes.renderer import BACKGROUND, PALETTE, SKIN, outline_coverage
from drover.worlds.shapes.scenes import CANVAS, COLOURS, DIRECTION, OCCUPATIONS, SHAPES

if TYPE_CHECKING:
    from PIL.Image import Image

SMALLEST_THING = 14  # pixels
SMALLEST_HEAD = 20  # pixels, without the rim
SHAPE_OVERLAP = 0.65  # below this intersection over union a blob has no shape
HEAD_OVERLAP = 0.6
EXTRA_COST = 0.1  # per thing the prompt did not ask for
RELATION_COSINE = 2**-0.5  # a relation holds within 45 degrees of its direction

_BACKGROUND = np.array(BACKGROUND, np.float32)
_RAYS = np.array([PALETTE[colour] for colour in COLOURS], np.float32) - _BACKGROUND
_RAY_SQUARES = (_RAYS**2).sum(1)
_GARMENTS = tuple(PALETTE)
_POINTS = np.array([*SKIN, BACKGROUND, *PALETTE.values()], np.float32)
_POINT_SQUARES = (_POINTS**2).sum(1)
_FIRST_GARMENT = len(SKIN) + 1
_AREA = {"circle": np.pi, "square": 3.24, "triangle": 2.64}  # of size 1


@dataclass(frozen=True)
class FoundThing:
    """A connected blob of one colour: centre of mass in pixels, area in pixels, shape or None.

    `FoundThing("circle", "red", 9.1, 15.9, 63.4)`
    """

    shape: str | None
    colour: str
    x: float
    y: float
    area: float


@dataclass(frozen=True)
class Reading:
    """The content read from a picture: things from the largest down, or a person.

    In a person's picture `things` is empty; in any other, `tone`, `garment` and `hat` are None.

    `Reading((), 2, "teal", False)`
    """

    things: tuple[FoundThing, ...]
    tone: int | None
    garment: str | None
    hat: bool | None


def read(image: np.ndarray | Image) -> Reading:
    """Read `image`, a uint8 [32, 32, 3] array or an RGB PIL image of that size."""
    pixels = pixels_of(image)
    return _read_person(pixels) or Reading(_read_things(pixels), None, None, None)


def tone(image: np.ndarray | Image) -> int | None:
    """Skin tone 0 (darkest) to 3 (lightest); None where there is no head."""
    return read(image).tone


def relation_holds(prompt: str, image: np.ndarray | Image) -> bool | None:
    """Whether the thing of the first asked colour lies in the asked direction from the second, within 45 degrees.

    None if the prompt asks for no direction or if either colour is not in the picture.
    """
    parsed = prompts.parse(prompt)
    if parsed.link is None or parsed.link not in DIRECTION:
        return None
    cosine = _cosine(parsed.link, _match(parsed, read(image).things))
    return None if cosine is None else cosine > RELATION_COSINE


def composition(prompt: str, image: np.ndarray | Image) -> float:
    """The share of the prompt that is in the picture, in [0, 1].

    A thing earns 1/2 for its colour and 1/2 for the right shape in that colour.
    One thing: its points. Two things with "and": their mean. Two things in a direction: half
    their mean, plus half the cosine between the asked and the found direction (0 if
    negative, and 0 if either colour is missing). Each further blob costs 0.1, down to 0.
    Portrait: 1/2 for a head, 1/4 for the occupation's garment, 1/4 for its hat or bare head.
    """
    parsed, reading = prompts.parse(prompt), read(image)
    if parsed.occupation is not None:
        return _person_credit(parsed.occupation, reading)
    matched = _match(parsed, reading.things)
    credit = float(np.mean([_credit(kind, thing) for kind, thing in zip(parsed.kinds, matched, strict=True)]))
    if parsed.link is not None and parsed.link in DIRECTION:
        cosine = _cosine(parsed.link, matched)
        credit = 0.5 * credit + 0.5 * max(0.0, cosine or 0.0)
    extras = len(reading.things) - sum(thing is not None for thing in matched)
    return max(0.0, credit - EXTRA_COST * extras)


def _person_credit(occupation: str, reading: Reading) -> float:
    if reading.tone is None:
        return 0.0
    garment, hat = OCCUPATIONS[occupation]
    return 0.5 + 0.25 * (reading.garment == garment) + 0.25 * (reading.hat == hat)


def _match(parsed: prompts.ParsedPrompt, things: tuple[FoundThing, ...]) -> list[FoundThing | None]:
    """The blob of each asked kind's colour: a blob of the right shape if there is one, else the largest."""
    return [
        max(
            (thing for thing in things if thing.colour == colour),
            key=lambda thing: (thing.shape == shape, thing.area),
            default=None,
        )
        for shape, colour in parsed.kinds
    ]


def _credit(kind: prompts.Kind, thing: FoundThing | None) -> float:
    return 0.0 if thing is None else 0.5 + 0.5 * (thing.shape == kind[0])


def _cosine(relation: str, matched: list[FoundThing | None]) -> float | None:
    """The cosine between the asked direction and that from the second thing to the first; None without both things."""
    first, second = matched
    if first is None or second is None:
        return None
    dx, dy = first.x - second.x, first.y - second.y
    across, down = DIRECTION[relation]
    return (dx * across + dy * down) / max(float(np.hypot(dx, dy)), 1e-6)


def pixels_of(image: np.ndarray | Image) -> np.ndarray:
    pixels = np.asarray(image)
    if pixels.shape != (CANVAS, CANVAS, 3) or pixels.dtype != np.uint8:
        raise ValueError(
            f"a picture of the shapes world is uint8 [{CANVAS}, {CANVAS}, 3]; got {pixels.dtype} "
            f"{list(pixels.shape)}. Decode to uint8 RGB without resizing."
        )
    return pixels.astype(np.float32)


def _read_things(pixels: np.ndarray) -> tuple[FoundThing, ...]:
    offset = pixels.reshape(-1, 3) - _BACKGROUND
    along = offset @ _RAYS.T  # [1024, colours]
    blend = np.clip(along / _RAY_SQUARES, 0, 1)
    # Squared distance to each line, less |offset|^2, which all lines share.
    distance = blend * (blend * _RAY_SQUARES - 2 * along)
    nearest = distance.argmin(1)
    share = blend[np.arange(len(nearest)), nearest].reshape(CANVAS, CANVAS)
    nearest = nearest.reshape(CANVAS, CANVAS)
    inside = share > 0.5
    things = [
        _thing(COLOURS[colour], share * (nearest == colour) * unpack(grown(blob)))
        for colour in np.unique(nearest[inside])
        for blob in blobs(inside & (nearest == colour), SMALLEST_THING)
    ]
    return tuple(sorted(things, key=lambda thing: -thing.area))


def _thing(colour: str, coverage: np.ndarray) -> FoundThing:
    """The thing whose colour covers these shares [32, 32] of the pixels."""
    x, y, area = moments(coverage)
    overlaps = {
        shape: overlap(coverage, outline_coverage(shape, x, y, (area / _AREA[shape]) ** 0.5)) for shape in SHAPES
    }
    best = max(overlaps, key=overlaps.__getitem__)
    return FoundThing(best if overlaps[best] >= SHAPE_OVERLAP else None, colour, x, y, area)


def _read_person(pixels: np.ndarray) -> Reading | None:
    flat = pixels.reshape(-1, 3)
    labels = (_POINT_SQUARES - 2 * flat @ _POINTS.T).argmin(1).reshape(CANVAS, CANVAS)
    heads = blobs(without_rim(labels < len(SKIN)), SMALLEST_HEAD)
    if not heads:
        return None
    head = unpack(max(heads, key=int.bit_count))
    x, y, area = moments(head.astype(np.float32))
    if overlap(head, outline_coverage("circle", x, y, (area / np.pi) ** 0.5)) < HEAD_OVERLAP:
        return None
    skin = int(np.bincount(labels[head], minlength=len(SKIN)).argmax())
    garment = _most_common_garment(labels[-4:, 8:-8])
    cap = labels[: max(int(y) - 3, 0)]
    hat = garment is not None and np.count_nonzero(cap == _FIRST_GARMENT + garment) >= 10
    return Reading((), skin, None if garment is None else _GARMENTS[garment], bool(hat))


def _most_common_garment(labels: np.ndarray) -> int | None:
    garments = labels[labels >= _FIRST_GARMENT] - _FIRST_GARMENT
    return int(np.bincount(garments).argmax()) if 2 * garments.size > labels.size else None
