"""Prompts with fields: facts about a prompt, from its line in a prompt file, that rewards may ask for."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Self, TypeGuard

from drover.common.errors import ConfigError

Field = str | int | float | bool | None | list[str | int | float | bool | None]
MAX_FIELDS_BYTES = 4096  # of one prompt, as JSON: orders stay small
_NONE: Mapping[str, Field] = MappingProxyType({})  # shared, as most prompts of a large file have no fields


class Prompt(str):
    """A prompt that is a string to models, and carries ``fields`` for the rewards that read them.

    Example: ``Prompt("two red apples", {"objects": ["apple", "apple"], "count": 2})``. It equals, hashes and encodes like
    its text alone; its repr, from which a run's identity is computed, has the fields. Raises `ConfigError` for fields that
    are no JSON scalars or short lists of them.
    """

    __slots__ = ("fields",)
    fields: Mapping[str, Field]

    def __new__(cls, text: str, fields: Mapping[str, Field] | None = None) -> Self:
        prompt = super().__new__(cls, text)
        prompt.fields = _NONE
        if fields:
            _check(text, fields)
            prompt.fields = MappingProxyType(dict(fields))
        return prompt

    def __repr__(self) -> str:
        text = super().__repr__()
        return f"Prompt({text}, {dict(self.fields)!r})" if self.fields else text

    def __reduce__(self) -> tuple[type[Self], tuple[str, dict[str, Field]]]:
        return type(self), (str(self), dict(self.fields))


def fields_text(prompts: Sequence[str]) -> tuple[str, ...]:
    """One JSON object per prompt; empty where no prompt has fields, as messages carry them."""
    found = [dict(prompt.fields) if isinstance(prompt, Prompt) else {} for prompt in prompts]
    return tuple(json.dumps(one, sort_keys=True) for one in found) if any(found) else ()


def with_fields(prompts: Sequence[str], texts: Sequence[str]) -> tuple[Prompt, ...]:
    """The inverse of `fields_text`. Raises ValueError for texts that are no JSON objects, one per prompt."""
    found = [json.loads(text) for text in texts] if texts else [{} for _ in prompts]
    if len(found) != len(prompts) or not all(isinstance(one, dict) for one in found):
        raise ValueError(f"fields are one JSON object for each of {len(prompts)} prompts, got {reprlib.repr(texts)}")
    return tuple(Prompt(prompt, one) for prompt, one in zip(prompts, found, strict=True))


def is_field(value: object) -> TypeGuard[Field]:
    """Whether a value can be a field: a text, finite number, truth value or None, or a list of these."""
    items = value if isinstance(value, list) else [value]
    return all(
        math.isfinite(item) if isinstance(item, float) else item is None or isinstance(item, str | int)
        for item in items
    )


def _check(text: str, fields: Mapping[str, Field]) -> None:
    for name, value in fields.items():
        if not isinstance(name, str) or not is_field(value):
            raise ConfigError(
                f"field {name!r} of prompt {text!r} is a {type(value).__name__}, wanted a text, finite number, truth value "
                "or a list of these"
            )
    size = len(json.dumps(dict(fields)))
    if size > MAX_FIELDS_BYTES:
        raise ConfigError(
            f"the fields of prompt {text!r} take {size} bytes, at most {MAX_FIELDS_BYTES} travel; shorten them"
        )
