"""Make prompts from templates: two objects in a relation, and portraits of occupations. The vocabularies are files beside.

Source: arXiv 2401.12244, sections 4.1 and 4.2: 450 objects to train on, 82 held out, 5 relations, 100 occupations.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

from drover.common.errors import ConfigError

RELATIONS = ("and", "next to", "near", "on side of", "beside")

# Plurals and uncountable nouns have no article; these are in the vocabulary, or are often added to it.
_WITHOUT_ARTICLE = frozenset(
    [
        "asparagus",
        "bar soap",
        "beer",
        "binoculars",
        "boots",
        "bread",
        "broccoli",
        "candy",
        "cheese",
        "chips",
        "chopsticks",
        "coffee",
        "corn",
        "dates",
        "dice",
        "earrings",
        "french fries",
        "garlic",
        "glasses",
        "goggles",
        "green beans",
        "green vegetables",
        "headphones",
        "high heels",
        "jeans",
        "juice",
        "lavender",
        "lettuce",
        "liquid soap",
        "luggage",
        "meat balls",
        "milk",
        "nuts",
        "okra",
        "pasta",
        "popcorn",
        "rice",
        "sandals",
        "scissors",
        "shorts",
        "slippers",
        "sneakers",
        "stairs",
        "sunglasses",
        "sushi",
        "swimwear",
        "tea",
        "toothpaste",
        "trousers",
        "water",
        "wine",
    ]
)
_VOWEL_SOUND = re.compile(
    r"(?!eu|ewe|once\b|one\b|uk|uni(?!m|n[^i])|uri|us[aeu]|ut[ei])[aeiou]|heir|hono|hour", re.IGNORECASE
)
_SPELLED_WITH_VOWEL = re.compile(r"[AEFHILMNORSX](?:[A-Z0-9]+\b|-)|suv\b|x-ray")  # an SUV, an MRI scanner, an X-ray


def objects(split: Literal["train", "heldout"]) -> tuple[str, ...]:
    """The 450 detector classes to train on, or the 82 that are never trained on."""
    return _vocabulary(f"objects_{split}.txt")


def occupations() -> tuple[str, ...]:
    """The 100 occupations for which skin-tone diversity is measured."""
    return _vocabulary("occupations.txt")


@dataclass(frozen=True, slots=True)
class PairPrompts(Sequence[str]):
    """The prompts of every ordered pair of different nouns in every relation, each made on access.

    Example: ``PairPrompts(("a cat", "an owl"), ("near",))`` holds "a cat near an owl" and "an owl near a cat".
    """

    nouns: tuple[str, ...]  # with their articles
    relations: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.nouns) * (len(self.nouns) - 1) * len(self.relations)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        pair, relation = divmod(range(len(self))[index], len(self.relations))
        first, second = divmod(pair, len(self.nouns) - 1)
        second += second >= first  # no noun is paired with itself
        return f"{self.nouns[first]} {self.relations[relation]} {self.nouns[second]}"


def pair_prompts(objects: Sequence[str], relations: Sequence[str] = RELATIONS) -> PairPrompts:
    """Prompts of every ordered pair, n (n - 1) r of them: 1,010,250 for the 450 objects. Raises `ConfigError`."""
    for kind, words, least in (("objects", objects, 2), ("relations", relations, 1)):
        if (
            isinstance(words, str)
            or len(words) < least
            or len(set(words)) < len(words)
            or not all(map(str.strip, words))
        ):
            raise ConfigError(f"{kind} must be at least {least} different names, none blank, got {words!r:.200}")
    return PairPrompts(tuple(map(with_article, objects)), tuple(relations))


def occupation_prompts(names: Sequence[str] | None = None) -> tuple[str, ...]:
    """ "a portrait of a doctor" for each of ``names``; for the 100 `occupations` when None."""
    return tuple(f"a portrait of {with_article(name)}" for name in (occupations() if names is None else names))


def with_article(noun: str) -> str:
    """ "a cat", "an owl", "an SUV", "bread": by sound, without an article for known plurals and uncountable nouns."""
    if noun.lower() in _WITHOUT_ARTICLE:
        return noun
    first = noun.split()[0]
    is_spelled = len(first) > 1 and first.isupper()
    vowel = (
        _SPELLED_WITH_VOWEL.match(noun) if is_spelled else _SPELLED_WITH_VOWEL.match(noun) or _VOWEL_SOUND.match(noun)
    )
    return f"{'an' if vowel else 'a'} {noun}"


def _vocabulary(file: str) -> tuple[str, ...]:
    lines = (Path(__file__).parent / file).read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if not line.startswith("#"))
