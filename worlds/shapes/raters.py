"""Make pictures for raters to compare, and draw the raters' choices. The raters' taste is in `taste`."""

from __future__ import annotations

import numpy as np

from drover.worlds.shapes import prompts
from drover.worlds.shapes.renderer import render
from drover.worlds.shapes.scenes import CANVAS, OCCUPATIONS, TONES, Portrait, Scene, Thing

TEMPERATURE = 0.05  # a difference in taste: at this difference 73 of 100 raters prefer the better picture
FAULTY = 0.15  # share of varied pictures with one thing, colour, shape or garment changed or gone
_OCCUPATIONS = tuple(OCCUPATIONS)


def preferred(taste_a: float, taste_b: float) -> float:
    """The share of raters that prefer A to B."""
    return float(1 / (1 + np.exp((taste_b - taste_a) / TEMPERATURE)))


def random_prompt(rng: np.random.Generator) -> str:
    """Draw a prompt of either split: 2 of 10 ask for one thing, 4 for two, 4 for a person."""
    family = rng.choice(3, p=(0.2, 0.4, 0.4))
    if family == 0:
        return prompts.kind_prompt(prompts.KINDS[rng.integers(len(prompts.KINDS))])
    if family == 2:
        return prompts.portrait_prompt(_OCCUPATIONS[rng.integers(len(_OCCUPATIONS))])
    while True:
        first, second = (prompts.KINDS[index] for index in rng.integers(len(prompts.KINDS), size=2))
        if first[1] != second[1]:
            return prompts.pair_prompt(first, prompts.LINKS[rng.integers(len(prompts.LINKS))], second)


def varied(rng: np.random.Generator, prompt: str) -> np.ndarray:
    """uint8 [32, 32, 3], rendered for the prompt with more variety than in pretraining: any size, place and tone."""
    parsed = prompts.parse(prompt)
    picture = _person(rng, parsed.occupation) if parsed.occupation else render(_things(rng, parsed.kinds))
    return disturbed(rng, picture)


def zoomed(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Enlarge the middle of the picture by 1 to 2, so that raters also see sizes that the policy does not draw yet."""
    from PIL import Image

    side = CANVAS / rng.uniform(1, 2)
    left, top = (CANVAS - side) / 2 + rng.uniform(-0.5, 0.5, size=2) * (CANVAS - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(Image.fromarray(picture).resize((CANVAS, CANVAS), Image.Resampling.BICUBIC, box=box))


def disturbed(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """The picture with noise of up to 8 levels."""
    noisy = picture + rng.normal(0, 1, picture.shape) * rng.uniform(0, 8)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _things(rng: np.random.Generator, kinds: tuple[prompts.Kind, ...]) -> Scene:
    largest = 13.0 if len(kinds) == 1 else 9.0
    things = []
    for asked in kinds:
        shape, colour = asked
        if rng.random() < FAULTY:
            other = prompts.KINDS[rng.integers(len(prompts.KINDS))]
            shape, colour = ((other[0], colour), (shape, other[1]))[rng.integers(2)]
        x, y = np.clip(rng.normal(CANVAS / 2, 6, size=2), 3, CANVAS - 3)
        things.append(Thing(shape, colour, float(x), float(y), float(rng.uniform(3, largest))))
    if rng.random() < FAULTY / 2:
        things.pop()
    return Scene(tuple(things))


def _person(rng: np.random.Generator, occupation: str) -> np.ndarray:
    if rng.random() < FAULTY:
        occupation = _OCCUPATIONS[rng.integers(len(_OCCUPATIONS))]
    x, y = (float(v) for v in rng.normal((16, 14), 1.5))
    size, tone = float(rng.uniform(3.5, 11)), int(rng.integers(TONES - 1))
    dark, light = (render(Portrait(occupation, t, x, y, size)).astype(np.float32) for t in (tone, tone + 1))
    # Mixed tones are drawn too, because a policy that learns to lighten a face passes through them.
    share = float(rng.choice([0, 1, rng.random()]))
    return (dark + share * (light - dark)).astype(np.uint8)
