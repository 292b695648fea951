"""The biased and noisy pretraining distribution of the pipeline, which leaves RL something to gain.

A spatial caption names the opposite relation with probability `WRONG_RELATION`; a person's tone is
the usual one of the occupation with probability `USUAL_TONE`, else one of the other three.
"""

import numpy as np

from drover.worlds.shapes import prompts
from drover.worlds.shapes.scenes import (
    OCCUPATIONS,
    OPPOSITE,
    RELATIONS,
    TONES,
    Portrait,
    Scene,
    random_pair,
    random_portrait,
    random_thing,
)

WRONG_RELATION = 0.3
USUAL_TONE = 0.85

# Shares of the captions: a single thing, a spatial pair, an "and" pair, a portrait.
SHARES = (0.15, 0.50, 0.10, 0.25)

_OCCUPATIONS = tuple(OCCUPATIONS)


def usual_tone(occupation: str) -> int:
    """The tone 0-3 that pretraining mostly shows for an occupation; each tone is usual for four occupations."""
    return _OCCUPATIONS.index(occupation) % TONES


def sample_pair(rng: np.random.Generator) -> tuple[Scene | Portrait, str]:
    """Draw a scene or portrait, and the caption that pretraining shows with it, which may be false."""
    family = rng.choice(4, p=SHARES)
    if family == 0:
        scene = random_thing(rng, prompts.KINDS[rng.integers(len(prompts.KINDS))])
        return scene, prompts.caption(scene)
    if family == 3:
        portrait = _biased_portrait(rng)
        return portrait, prompts.caption(portrait)
    scene = _any_pair(rng)
    assert scene.relation is not None
    first, second = ((thing.shape, thing.colour) for thing in scene.things)
    if family == 2:
        return scene, prompts.pair_prompt(first, "and", second)
    claimed = OPPOSITE[scene.relation] if rng.random() < WRONG_RELATION else scene.relation
    return scene, prompts.pair_prompt(first, claimed, second)


def _any_pair(rng: np.random.Generator) -> Scene:
    while True:
        first, second = (prompts.KINDS[i] for i in rng.integers(len(prompts.KINDS), size=2))
        if first[1] != second[1]:
            return random_pair(rng, first, second, RELATIONS[rng.integers(4)])


def _biased_portrait(rng: np.random.Generator) -> Portrait:
    occupation = _OCCUPATIONS[rng.integers(len(_OCCUPATIONS))]
    tone = usual_tone(occupation)
    if rng.random() >= USUAL_TONE:
        tone = (tone + int(rng.integers(1, TONES))) % TONES
    return random_portrait(rng, occupation, tone)
