"""Which versions are kept: the newest few, and any that somebody pinned. Knows nothing of what a version is made of."""

from __future__ import annotations

from collections import Counter
from typing import Generic, TypeVar

T = TypeVar("T")


class Shelf(Generic[T]):
    """Version -> what it is made of. Versions only rise."""

    def __init__(self, newest: int) -> None:
        """``newest``: how many of the newest versions stay without being pinned, at least 1."""
        self._newest = newest
        self._versions: dict[int, T] = {}
        self._pins: Counter[int] = Counter()

    def put(self, version: int, parts: T) -> None:
        """What nobody needs any more is forgotten."""
        self._versions[version] = parts
        self._clean()

    def get(self, version: int) -> T | None:
        return self._versions.get(version)

    def latest(self) -> int:
        """-1 before the first."""
        return max(self._versions, default=-1)

    def pin(self, version: int) -> bool:
        """Keep it until as many `unpin`; False when it is gone already."""
        if version not in self._versions:
            return False
        self._pins[version] += 1
        return True

    def unpin(self, version: int) -> None:
        """Undo one `pin`. Nothing happens where there is none: whoever pinned it may have been cleared away."""
        if self._pins[version] > 0:
            self._pins[version] -= 1
        self._pins += Counter()  # drops what counts 0
        self._clean()

    def clear(self) -> None:
        """Forget all versions and all pins."""
        self._versions.clear()
        self._pins.clear()

    def _clean(self) -> None:
        for version in sorted(self._versions)[: -self._newest]:
            if not self._pins[version]:
                del self._versions[version]
