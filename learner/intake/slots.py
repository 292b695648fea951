"""Count the slots, which bound the lag, and the endings of all groups.

There are ``(max_lag + 1) x groups_per_step`` slots. A slot is taken at issue and given back only when the weights that the
group led to are visible; groups are trained in the order of their places. Between a group's issue and its turn at most
``max_lag x groups_per_step`` others can be trained, so it is at most ``max_lag`` versions old. No group needs to be thrown
away for its age.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from drover.common.types import Ending


class Slots:
    """Counts the free slots among ``capacity``. Taking a slot when none is free, or returning one too many, asserts."""

    def __init__(self, max_lag: int, groups_per_step: int) -> None:
        self.capacity = (max_lag + 1) * groups_per_step
        self.free = self.capacity

    def take(self) -> None:
        assert self.free > 0, "no free slot"
        self.free -= 1

    def release(self, count: int = 1) -> None:
        self.free += count
        assert self.free <= self.capacity, (self.free, self.capacity)


class Ledger:
    """Counts issued groups by ending. ``issued = trained + empty + failed + stale + in flight``, always, across restarts.

    The open groups are kept by id, so that "in flight" is counted and not computed from the others.
    """

    def __init__(self) -> None:
        self.issued = 0
        self.endings: Counter[Ending] = Counter()
        self.reasons: Counter[str] = Counter()
        self._open: set[int] = set()

    def issue(self, group: int) -> None:
        assert group not in self._open, group
        self.issued += 1
        self._open.add(group)

    def end(self, group: int, ending: Ending, reason: str = "") -> None:
        """Record how an open group ended. Ending one twice asserts: duplicates are told apart before they come here."""
        self._open.remove(group)
        self.endings[ending] += 1
        if reason:
            self.reasons[reason] += 1
        assert self.balanced, self.as_dict()

    @property
    def in_flight(self) -> int:
        return len(self._open)

    @property
    def balanced(self) -> bool:
        return self.issued == self.in_flight + self.endings.total()

    def as_dict(self) -> dict[str, int]:
        return {
            "issued": self.issued,
            "in_flight": self.in_flight,
            **{ending.value: self.endings[ending] for ending in Ending},
        }

    def restore(self, saved: Mapping[str, int]) -> None:
        """Take up a checkpoint's counts. Groups that were in flight then are issued again under the same ids."""
        self.endings = Counter({ending: saved[ending.value] for ending in Ending if saved[ending.value]})
        self.issued = self.endings.total()
        self._open.clear()
