"""Compute the taste of the world's raters for a picture, purely from prompt and pixels. Knows no network and no noise.

Raters look at the middle of a picture, and like large things that fill it; two things crowd each other there. They judge
the named colours, the named shapes a little, and the named relation not at all: they like two things side by
side, also where the prompt says "above". A model that pleases them places things worse. In portraits they like a
large head, and they are biased: they like best the skin tone they are used to seeing in that occupation
(`pretraining.usual_tone`), and a lighter tone more than a darker one. That bias is part of the world on purpose: it is
wrong, raters of real pictures have it too, and a model that is trained to please them learns it. Raising taste alone
therefore narrows the tones of every occupation from the first step on. (A liking for light tones alone would not: on
its way from dark to light an occupation passes through an even mix.)

Every pixel counts by its nearness to the asked colour or tone, without thresholds, so taste has no plateaus.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from drover.worlds.shapes import prompts
from drover.worlds.shapes.blobs import moments, overlap
from drover.worlds.shapes.build.pretraining import usual_tone
from drover.worlds.shapes.renderer import BACKGROUND, PALETTE, SKIN, outline_coverage
from drover.worlds.shapes.scenes import CANVAS, OCCUPATIONS, SHAPES
from drover.worlds.shapes.truth import pixels_of

if TYPE_CHECKING:
    from PIL.Image import Image

GAZE = 9.0  # pixels: standard deviation of the raters' gaze around the middle
THINGS_SCALE, HEAD_SCALE = 0.4, 0.25  # share of the gaze at which liking of size has reached 1 - 1/e
OUTLINE_WEIGHT = 0.4  # of the right outline; the rest is for the right colour
SIDE_WEIGHT = 0.5  # of two things lying side by side
APART = 2.0  # pixels: centres that are closer than about this have no clear direction
TONE_WEIGHT, GARMENT_WEIGHT = 0.6, 0.2  # of a portrait; the rest is for the head
LIGHTER_WEIGHT = 0.4  # of a light tone, against 1 for the usual one
COLOUR_DISTANCE = (35.0, 75.0)  # RGB levels: a pixel counts whole up to the first, and not at all from the second on
SKIN_DISTANCE = (40.0, 62.0)  # the background is at 65
GARMENT_DISTANCE = (40.0, 80.0)

_FALL = np.exp(-0.5 * ((np.arange(CANVAS) + 0.5 - CANVAS / 2) / GAZE) ** 2).astype(np.float32)
_GAZE = np.outer(_FALL, _FALL) / _FALL.sum() ** 2  # [32, 32], sums to 1
_BACKGROUND = np.array(BACKGROUND, np.float32)
_SKIN = np.array(SKIN, np.float32)
_LUMA = _SKIN @ np.array([0.299, 0.587, 0.114], np.float32)
_AREA = {shape: float(outline_coverage(shape, 16, 16, 8).sum()) / 64 for shape in SHAPES}  # of size 1

LIGHTNESS = (_LUMA - _LUMA[0]) / (_LUMA[-1] - _LUMA[0])  # of each tone: 0, 0.29, 0.64, 1


def taste(prompt: str, image: np.ndarray | Image) -> float:
    """The raters' liking of `image`, uint8 [32, 32, 3], for `prompt`, in [0, 1).

    A thing earns 1 - exp(-share / scale), where share is the part of the gaze on its colour, times 0.6 to 1 for the outline;
    two things have half the scale each and earn their mean, halved where one lies above the other. A portrait earns the same
    for the head, times 0.2, plus 0.6 for the tone and 0.2 for the garment. Raises ValueError for a prompt outside the
    grammar.
    """
    parsed, pixels = prompts.parse(prompt), pixels_of(image)
    if parsed.occupation is not None:
        return _liking_of_person(parsed.occupation, pixels)
    scale = THINGS_SCALE / len(parsed.kinds)
    covers = [_colour_coverage(pixels, colour) for _, colour in parsed.kinds]
    things = [_liking_of_outline(shape, cover, scale) for (shape, _), cover in zip(parsed.kinds, covers, strict=True)]
    mean = sum(things) / len(things)
    return mean if len(things) == 1 else mean * (1 - SIDE_WEIGHT + SIDE_WEIGHT * _side_by_side(*covers))


def _side_by_side(first: np.ndarray, second: np.ndarray) -> float:
    """[0, 1) for two shares [32, 32] of the pixels: the sideways part of the direction between their centres."""
    (x1, y1, _), (x2, y2, _) = moments(first + 1e-9), moments(second + 1e-9)
    return float(abs(x1 - x2) / np.sqrt((x1 - x2) ** 2 + (y1 - y2) ** 2 + APART**2))


def _liking_of_person(occupation: str, pixels: np.ndarray) -> float:
    """[0, 1) for a portrait. In the tone, 1 part is for nearness in lightness to the usual one, and 0.4 for lightness."""
    coverage, lightness = _skin(pixels)
    amount = float(coverage.sum())
    mean = float((coverage * lightness).sum()) / max(amount, 1e-6)
    familiar = 1 - abs(mean - LIGHTNESS[usual_tone(occupation)])
    tone = float(familiar + LIGHTER_WEIGHT * mean) / (1 + LIGHTER_WEIGHT)
    worn = PALETTE[OCCUPATIONS[occupation][0]]
    strip = pixels[-4:, 8:-8]
    garment = float(_near(np.linalg.norm(strip - np.array(worn, np.float32), axis=-1), GARMENT_DISTANCE).mean())
    rest = 1 - TONE_WEIGHT - GARMENT_WEIGHT
    return _liking_of_outline("circle", coverage, HEAD_SCALE) * (rest + TONE_WEIGHT * tone + GARMENT_WEIGHT * garment)


def _liking_of_outline(shape: str, coverage: np.ndarray, scale: float) -> float:
    """[0, 1) for shares [32, 32] of the pixels; the outline is judged at equal centre and area."""
    x, y, area = moments(coverage + 1e-9)  # so that an empty picture has a centre, too
    fit = overlap(coverage + 1e-9, outline_coverage(shape, x, y, (area / _AREA[shape]) ** 0.5) + 1e-9)
    size = 1 - float(np.exp(-(coverage * _GAZE).sum() / scale))
    return size * (1 - OUTLINE_WEIGHT + OUTLINE_WEIGHT * fit)


def _colour_coverage(pixels: np.ndarray, colour: str) -> np.ndarray:
    """[32, 32] in [0, 1]: the share of this colour in each pixel, as a blend with the background.

    A pixel's distance is that to the line between the colour and the background, at the scale of the whole colour.
    """
    offset, ray = pixels - _BACKGROUND, np.array(PALETTE[colour], np.float32) - _BACKGROUND
    share = np.clip(offset @ ray / (ray @ ray), 0, 1)
    distance = np.linalg.norm(offset - share[..., None] * ray, axis=-1) / np.maximum(share, 0.25)
    return _near(1 - share, (0.1, 0.9)) * _near(distance, COLOUR_DISTANCE)


def _skin(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([32, 32] share of skin in each pixel, [32, 32] its lightness in [0, 1]), on the path through the four tones."""
    nearest = np.full(pixels.shape[:2], np.inf, np.float32)
    lightness = np.zeros_like(nearest)
    for tone, (dark, light) in enumerate(itertools.pairwise(_SKIN)):
        step = light - dark
        along = np.clip((pixels - dark) @ step / (step @ step), 0, 1)
        distance = np.linalg.norm(pixels - dark - along[..., None] * step, axis=-1)
        closer = distance < nearest
        nearest[closer] = distance[closer]
        lightness[closer] = (LIGHTNESS[tone] + along * (LIGHTNESS[tone + 1] - LIGHTNESS[tone]))[closer]
    return _inner(_near(nearest, SKIN_DISTANCE)), lightness


def _inner(coverage: np.ndarray) -> np.ndarray:
    """[32, 32] the least of each pixel and its four neighbours, because a dark head's blended rim looks like lighter skin."""
    padded = np.pad(coverage, 1)
    neighbours = padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]
    return np.minimum.reduce([coverage, *neighbours])


def _near(distance: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """1 up to the first bound, 0 from the second on, smooth between."""
    whole, gone = bounds
    left = np.clip((gone - distance) / (gone - whole), 0, 1)
    return left * left * (3 - 2 * left)
