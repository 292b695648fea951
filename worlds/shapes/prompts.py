"""The closed language of the world: captions, their grammar, and the split of prompts into trained and held-out ones.

    caption  := thing | thing relation thing | "a portrait of" article occupation
    thing    := article colour shape
    relation := "left of" | "right of" | "above" | "below" | "and"

The two things of a caption have different colours. Held-out prompts are part of pretraining, so
the pipeline can draw them; they are kept out of RL to measure how far its gains generalise.
"""

import itertools
from dataclasses import dataclass

from drover.worlds.shapes.scenes import COLOURS, OCCUPATIONS, RELATIONS, SHAPES, Portrait, Scene

Kind = tuple[str, str]  # (shape, colour)

KINDS: tuple[Kind, ...] = tuple(itertools.product(SHAPES, COLOURS))
HELDOUT_KINDS: frozenset[Kind] = frozenset({("circle", "green"), ("square", "purple"), ("triangle", "orange")})
HELDOUT_OCCUPATIONS: frozenset[str] = frozenset({"doctor", "firefighter", "lawyer", "scientist"})
LINKS = (*RELATIONS, "and")

VOCABULARY: tuple[str, ...] = (
    *("a", "an", "and", "portrait", "of", "left", "right", "above", "below"),
    *COLOURS,
    *SHAPES,
    *OCCUPATIONS,
)


@dataclass(frozen=True)
class ParsedPrompt:
    """The content of a prompt: one or two (shape, colour) kinds and their link, or an occupation.

    `ParsedPrompt((("circle", "red"), ("square", "blue")), "left of", None)`
    """

    kinds: tuple[Kind, ...]
    link: str | None
    occupation: str | None


def caption(scene: Scene | Portrait) -> str:
    """The true caption of a scene or a portrait."""
    if isinstance(scene, Portrait):
        return portrait_prompt(scene.occupation)
    kinds = tuple((thing.shape, thing.colour) for thing in scene.things)
    if scene.relation is None:
        return kind_prompt(kinds[0])
    return pair_prompt(kinds[0], scene.relation, kinds[1])


def kind_prompt(kind: Kind) -> str:
    return f"{_article(kind[1])} {kind[1]} {kind[0]}"


def pair_prompt(first: Kind, link: str, second: Kind) -> str:
    return f"{kind_prompt(first)} {link} {kind_prompt(second)}"


def portrait_prompt(occupation: str) -> str:
    return f"a portrait of {_article(occupation)} {occupation}"


def parse(prompt: str) -> ParsedPrompt:
    """Parse a prompt, ignoring case and repeated spaces. Raises ValueError for a prompt outside the grammar."""
    words = prompt.lower().split()
    parsed = _parse_portrait(words) or _parse_things(words)
    if parsed is None:
        raise ValueError(
            f"{prompt!r} is not a prompt of the shapes world. Write '<thing>', '<thing> <relation> "
            f"<thing>' or 'a portrait of a <occupation>', where a thing is 'a <colour> <shape>' "
            f"with a colour of {', '.join(COLOURS)} and a shape of {', '.join(SHAPES)}, the two "
            f"things differ in colour, a relation is one of {', '.join(LINKS)}, and an occupation "
            f"one of {', '.join(OCCUPATIONS)}."
        )
    return parsed


def relation_prompts(split: str) -> tuple[str, ...]:
    """Prompts of every ordered pair in every spatial relation; splits differ in their pairs of kinds."""
    return tuple(pair_prompt(first, relation, second) for first, second in _pairs(split) for relation in RELATIONS)


def object_prompts(split: str) -> tuple[str, ...]:
    """Prompts of single things, then of pairs joined by "and"; splits differ in both."""
    heldout = _is_heldout(split)
    singles = tuple(kind_prompt(kind) for kind in KINDS if (kind in HELDOUT_KINDS) == heldout)
    return singles + tuple(pair_prompt(first, "and", second) for first, second in _pairs(split))


def portrait_prompts(split: str) -> tuple[str, ...]:
    heldout = _is_heldout(split)
    return tuple(
        portrait_prompt(occupation) for occupation in OCCUPATIONS if (occupation in HELDOUT_OCCUPATIONS) == heldout
    )


def every_prompt() -> tuple[str, ...]:
    """The prompts of both splits of every family."""
    families = (object_prompts, relation_prompts, portrait_prompts)
    return tuple(prompt for family in families for split in ("train", "heldout") for prompt in family(split))


def _pairs(split: str) -> list[tuple[Kind, Kind]]:
    """Ordered pairs of differently coloured kinds; about a fifth of the unordered pairs is held out."""
    heldout = _is_heldout(split)
    numbered = enumerate(KINDS)
    return [
        (first, second)
        for (i, first), (j, second) in itertools.product(list(numbered), enumerate(KINDS))
        if first[1] != second[1] and ((i + j) % 5 == 0) == heldout
    ]


def _is_heldout(split: str) -> bool:
    if split not in ("train", "heldout"):
        raise ValueError(f"split is {split!r}; use 'train' or 'heldout'")
    return split == "heldout"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _parse_portrait(words: list[str]) -> ParsedPrompt | None:
    if words and words[-1] in OCCUPATIONS and words == portrait_prompt(words[-1]).split():
        return ParsedPrompt((), None, words[-1])
    return None


def _parse_things(words: list[str]) -> ParsedPrompt | None:
    first, second = _parse_kind(words[:3]), _parse_kind(words[-3:])
    if first is None or second is None:
        return None
    if len(words) == 3:
        return ParsedPrompt((first,), None, None)
    link = " ".join(words[3:-3])
    if link in LINKS and first[1] != second[1]:
        return ParsedPrompt((first, second), link, None)
    return None


def _parse_kind(words: list[str]) -> Kind | None:
    if len(words) == 3 and words[1] in COLOURS and words[2] in SHAPES and words[0] == _article(words[1]):
        return words[2], words[1]
    return None
