"""Keep the newest few versions and the pinned ones. Knows nothing of their content."""

from __future__ import annotations

from collections import Counter
from typing import Generic, TypeVar

T = TypeVar("T")


class Shelf(Generic[T]):
    """Maps the kept versions to their content. Versions only rise."""

    def __init__(self, newest: int) -> None:
        """``newest``: how many of the newest versions stay without being pinned, at least 1."""
        self._newest = newest
        self._versions: dict[int, T] = {}
        self._pins: Counter[int] = Counter()

    def put(self, version: int, parts: T) -> None:
        """Add a version, and drop those that are neither pinned nor among the newest."""
        self._versions[version] = parts
        self._clean()

    def get(self, version: int) -> T | None:
        return self._versions.get(version)

    def latest(self) -> int:
        """The newest version; -1 before the first."""
        return max(self._versions, default=-1)

    def pin(self, version: int) -> bool:
        """Keep a version until `unpin` is called as often as `pin`. Returns False if it is gone already."""
        if version not in self._versions:
            return False
        self._pins[version] += 1
        return True

    def unpin(self, version: int) -> None:
        """Undo one `pin`. Without a pin this does nothing, because `clear` may have removed it."""
        if self._pins[version] > 0:
            self._pins[version] -= 1
        self._pins += Counter()  # drops versions with 0 pins
        self._clean()

    def clear(self) -> None:
        """Forget all versions and all pins."""
        self._versions.clear()
        self._pins.clear()

    def _clean(self) -> None:
        for version in sorted(self._versions)[: -self._newest]:
            if not self._pins[version]:
                del self._versions[version]
