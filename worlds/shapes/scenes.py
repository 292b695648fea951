"""The possible contents of a picture: things and people. Knows no pixels and no words of a caption.

Coordinates are pixels of a 32x32 canvas, x to the right and y downwards, from the top-left corner.
"""

from dataclasses import dataclass

import numpy as np

CANVAS = 32
SHAPES = ("circle", "square", "triangle")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

# The unit vector from the second thing to the first.
DIRECTION = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}

TONES = 4

# occupation: (garment colour, wears a hat). Every combination occurs once, so a picture shows its occupation.
OCCUPATIONS = {
    "artist": ("purple", True),
    "astronaut": ("orange", True),
    "baker": ("yellow", True),
    "chef": ("grey", True),
    "doctor": ("teal", False),
    "engineer": ("yellow", False),
    "farmer": ("green", True),
    "firefighter": ("red", True),
    "judge": ("purple", False),
    "lawyer": ("grey", False),
    "mechanic": ("blue", False),
    "nurse": ("teal", True),
    "pilot": ("blue", True),
    "plumber": ("orange", False),
    "scientist": ("green", False),
    "teacher": ("red", False),
}

# Half-width, rise above and fall below the centre of mass, each per unit of size.
EXTENTS = {
    "circle": (1.0, 1.0, 1.0),
    "square": (0.9, 0.9, 0.9),
    "triangle": (1.2, 2.2 * 2 / 3, 2.2 / 3),
}


@dataclass(frozen=True)
class Thing:
    """One shape: centre of mass (x, y) and size in pixels; `Thing("circle", "red", 9.0, 16.0, 4.5)`."""

    shape: str
    colour: str
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Scene:
    """One or two things; `relation` is the true relation between them, None for a single thing.

    `Scene((Thing("circle", "red", 9.0, 16.0, 4.5), Thing("square", "blue", 22.0, 17.0, 4.2)), "left of")`
    """

    things: tuple[Thing, ...]
    relation: str | None = None


@dataclass(frozen=True)
class Portrait:
    """Head and shoulders of a person. Tone 0 (darkest) to 3 (lightest); the head's centre and radius in pixels.

    `Portrait("doctor", 2, 16.0, 13.5, 6.0)`
    """

    occupation: str
    tone: int
    x: float
    y: float
    size: float


def random_thing(rng: np.random.Generator, kind: tuple[str, str]) -> Scene:
    """One thing of this (shape, colour), near the middle of the canvas."""
    x, y = rng.uniform(11, 21, size=2)
    return Scene((Thing(*kind, float(x), float(y), _size(rng)),))


def random_pair(rng: np.random.Generator, first: tuple[str, str], second: tuple[str, str], relation: str) -> Scene:
    """Two (shape, colour) things, the first truly `relation` the second.

    Along the relation's axis they are 1 to 4 pixels clear of each other (their centres 8 or more
    apart); across it their centres differ by 3 pixels at most.
    """
    sizes = _size(rng), _size(rng)
    kinds = (first, second) if relation in ("left of", "above") else (second, first)
    near, far = (_reach(kind[0], size, relation) for kind, size in zip(kinds, _ordered(sizes, relation), strict=True))
    distance = near[1] + rng.uniform(1, 4) + far[0]
    slack = CANVAS - 1 - near[0] - distance - far[1]
    start = 0.5 + near[0] + slack / 2 + rng.uniform(-1, 1) * min(3.0, slack / 2)
    across = 16 + rng.uniform(-3, 3)
    shift = rng.uniform(-1.5, 1.5)
    centres = [(start, across + shift), (start + distance, across - shift)]
    if relation in ("right of", "below"):
        centres.reverse()
    if relation in ("above", "below"):
        centres = [(x, y) for y, x in centres]
    placed = zip((first, second), centres, sizes, strict=True)
    return Scene(tuple(Thing(*kind, float(x), float(y), size) for kind, (x, y), size in placed), relation)


def random_portrait(rng: np.random.Generator, occupation: str, tone: int) -> Portrait:
    x, y = rng.uniform(14.5, 17.5), rng.uniform(12.5, 14.5)
    return Portrait(occupation, tone, float(x), float(y), float(rng.uniform(5.5, 6.5)))


def _size(rng: np.random.Generator) -> float:
    return float(rng.uniform(4.0, 5.0))


def _ordered(sizes: tuple[float, float], relation: str) -> tuple[float, float]:
    return sizes if relation in ("left of", "above") else sizes[::-1]


def _reach(shape: str, size: float, relation: str) -> tuple[float, float]:
    """The extent of a shape before and behind its centre along the relation's axis, in pixels."""
    half_width, rise, fall = EXTENTS[shape]
    before, behind = (half_width, half_width) if relation in ("left of", "right of") else (rise, fall)
    return before * size, behind * size
