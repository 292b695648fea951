"""The form of all media: a frozen dataclass of arrays with a row per sample, and of facts about all rows.

Axes: N samples. The kinds are in the files beside this one; `kinds.py` lists them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from typing import Any, ClassVar, Protocol, TypeVar, cast, get_type_hints

import numpy as np

from drover.common.errors import MediaError


class Media(Protocol):
    """Samples of one kind, for example ``Pictures(pixels)``: arrays with a row per sample, and facts such as a frame rate."""

    kind: ClassVar[str]  # its name in messages and options

    def __len__(self) -> int:
        """N."""

    def pictures(self) -> np.ndarray:
        """[N, H, W, 3] uint8: the picture that shows each sample to people."""


M = TypeVar("M", bound=Media)


@lru_cache(maxsize=64)
def layout(kind: type[Media]) -> tuple[tuple[str, ...], Mapping[str, type]]:
    """(names of the kind's arrays, types of its facts by name), in the order of its fields."""
    hints = get_type_hints(kind)
    own = {field.name: hints[field.name] for field in fields(cast(Any, kind))}
    arrays = tuple(name for name, hint in own.items() if hint is np.ndarray)
    return arrays, {name: hint for name, hint in own.items() if name not in arrays}


def arrays(media: Media) -> dict[str, np.ndarray]:
    """The arrays of the media by name, each with N rows."""
    return {name: getattr(media, name) for name in layout(type(media))[0]}


def facts(media: Media) -> dict[str, float]:
    """The facts of the media by name."""
    return {name: getattr(media, name) for name in layout(type(media))[1]}


def made(kind: type[M], arrays: Mapping[str, np.ndarray], facts: Mapping[str, float]) -> M:
    """Make media of a kind. Raises `MediaError` where names, dtypes or shapes do not fit the kind."""
    names, types = layout(kind)
    if tuple(arrays) != names or tuple(facts) != tuple(types):
        raise MediaError(
            f"a {kind.kind} has the arrays {list(names)} and the facts {list(types)}, "
            f"got {list(arrays)} and {list(facts)}"
        )
    media: M = cast(Any, kind)(**arrays, **{name: _typed(name, types[name], fact) for name, fact in facts.items()})
    return media


def rows(media: M, part: slice) -> M:
    """Only those samples of the media, as views."""
    return made(type(media), {name: array[part] for name, array in arrays(media).items()}, facts(media))


def form(media: Media) -> tuple[object, ...]:
    """The kind, the shapes of rows and the facts. Media of equal forms can be joined."""
    return (media.kind, *facts(media).items(), *(array.shape[1:] for array in arrays(media).values()))


def joined(parts: Sequence[M]) -> M:
    """All samples of the parts, in order. Raises `MediaError` where their forms differ."""
    first = parts[0]
    if len(parts) == 1:
        return first
    for other in parts[1:]:
        if form(other) != form(first):
            raise MediaError(f"only media of one form can be joined, got {form(first)} and {form(other)}")
    together = {name: np.concatenate([arrays(part)[name] for part in parts]) for name in arrays(first)}
    return made(type(first), together, facts(first))


def of_kind(media: Media, kind: type[M]) -> M:
    """Return the media if they are of that kind. Raises `MediaError` otherwise."""
    if not isinstance(media, kind):
        raise MediaError(
            f"{kind.__name__} were wanted, got {type(media).__name__}; give the kind of media that the model draws"
        )
    return media


def check(media: Media, **forms: str) -> None:
    """Raise `MediaError` unless arrays are of these forms and facts are above 0: ``check(self, pixels="uint8 N H W 3")``.

    A form is a dtype and one axis per dimension: a letter, or a number where the size is given. Only N may be 0.
    """
    for name, wanted in forms.items():
        array, (dtype, *axes) = getattr(media, name), wanted.split()
        fits = isinstance(array, np.ndarray) and array.dtype == np.dtype(dtype) and array.ndim == len(axes)
        if not fits or not all(map(_fits, array.shape[1:], axes[1:])):
            found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
            raise MediaError(
                f"{type(media).__name__}.{name} is {dtype} [{', '.join(axes)}], got {found}; "
                "convert the array, or let the policy decode to that"
            )
    for name, fact in facts(media).items():
        if not (math.isfinite(fact) and fact > 0):
            raise MediaError(f"{type(media).__name__}.{name} is a number above 0, got {fact}")


def _typed(name: str, wanted: type, fact: float) -> float:
    if not math.isfinite(fact) or wanted(fact) != fact:
        raise MediaError(f"{name} must be a finite {wanted.__name__}, got {fact}")
    typed: float = wanted(fact)
    return typed


def _fits(size: int, axis: str) -> bool:
    return size == int(axis) if axis.isdigit() else size > 0
