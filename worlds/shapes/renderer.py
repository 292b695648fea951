"""Paint a scene or a portrait into pixels. Owns the palette and the outlines; knows no captions.

Outlines are signed distances in pixels, negative inside, so edges are antialiased over one pixel.
"""

import numpy as np

from drover.worlds.shapes.scenes import CANVAS, EXTENTS, OCCUPATIONS, Portrait, Scene, Thing

BACKGROUND = (240, 240, 240)
PALETTE = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (40, 80, 220),
    "yellow": (245, 215, 50),
    "purple": (150, 50, 190),
    "orange": (245, 140, 30),
    "teal": (30, 170, 180),
    "grey": (120, 125, 130),
}
SKIN = ((70, 42, 30), (141, 85, 54), (205, 145, 105), (248, 212, 182))

# Pixel centres: column positions [1, 32] and row positions [32, 1].
_X = np.arange(CANVAS, dtype=np.float32)[None, :] + 0.5
_Y = np.arange(CANVAS, dtype=np.float32)[:, None] + 0.5


def render(scene: Scene | Portrait) -> np.ndarray:
    """Paint the scene or portrait: uint8 [32, 32, 3]."""
    image = np.empty((CANVAS, CANVAS, 3), np.float32)
    image[:] = BACKGROUND
    for coverage, colour in layers(scene):
        image += coverage[..., None] * (np.asarray(colour, np.float32) - image)
    return (image + 0.5).astype(np.uint8)


def layers(scene: Scene | Portrait) -> list[tuple[np.ndarray, tuple[int, int, int]]]:
    """The layers of a picture from the back to the front, each as (coverage [32, 32] in [0, 1], RGB)."""
    if isinstance(scene, Scene):
        return [(thing_coverage(thing), PALETTE[thing.colour]) for thing in scene.things]
    garment, hat = OCCUPATIONS[scene.occupation]
    painted = [
        (shoulder_coverage(scene), PALETTE[garment]),
        (head_coverage(scene), SKIN[scene.tone]),
    ]
    if hat:
        painted.append((hat_coverage(scene), PALETTE[garment]))
    return painted


def thing_coverage(thing: Thing) -> np.ndarray:
    return outline_coverage(thing.shape, thing.x, thing.y, thing.size)


def outline_coverage(shape: str, x: float, y: float, size: float) -> np.ndarray:
    """[32, 32] fraction of each pixel inside a shape whose centre of mass is at (x, y)."""
    dx, dy = _X - x, _Y - y
    half_width, rise, fall = (size * extent for extent in EXTENTS[shape])
    if shape == "circle":
        distance = np.sqrt(dx * dx + dy * dy) - size
    elif shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - half_width
    else:
        height = rise + fall
        slant = ((dy + rise) * -half_width + np.abs(dx) * height) / np.hypot(height, half_width)
        distance = np.maximum(slant, dy - fall)
    return np.clip(0.5 - distance, 0, 1)


def head_coverage(portrait: Portrait) -> np.ndarray:
    return outline_coverage("circle", portrait.x, portrait.y, portrait.size)


def shoulder_coverage(portrait: Portrait) -> np.ndarray:
    """[32, 32] the upper half of an ellipse that stands on the lower edge, with a neck's overlap."""
    radius = np.hypot((_X - portrait.x) / 1.2, _Y - CANVAS)
    return np.clip(0.5 - (radius - (CANVAS - portrait.y - portrait.size + 0.5)), 0, 1)


def hat_coverage(portrait: Portrait) -> np.ndarray:
    """[32, 32] a cap over the upper part of the head, with a brim wider than the head."""
    above = _Y - (portrait.y - 0.45 * portrait.size)
    crown = np.hypot(_X - portrait.x, _Y - portrait.y) - portrait.size - 1
    brim = np.maximum(np.abs(_X - portrait.x) - portrait.size - 2.5, -above - 2)
    return np.clip(0.5 - np.maximum(np.minimum(crown, brim), above), 0, 1)
