"""When a pool should grow or shrink. Pure: sees numbers, says numbers; knows no Ray, no Redis and no clock.

Growing needs three things at once: the workers have no idle time left, messages wait that nobody holds, and somebody
suffers from it (the learner waits for this pool; where that is not known, the oldest message is old). The age of a queue
alone says little: slots bound how much work is open, and orders come in bursts, so that a pool which keeps pace has old ones.

Shrinking goes to what the busiest moment of a while needed. The while doubles each time that growing follows shrinking:
a load that comes in waves soon finds workers that stay, for waves up to `LONGEST_WHILE_S` apart; slower ones are followed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

BUSY = 0.85  # share of their time at which workers count as having none left
ROOM = 0.75  # the share that a shrunken pool should have; well below BUSY, or it would grow again at once
WAITING = 0.1  # share of the learner's time, spent waiting for a pool, that is worth another worker
OLD_S = 0.5  # where nobody says how long the learner waits: an oldest message this old is worth one
PRESSED_S = 5.0  # how long the reasons to grow must last
DRAINS = 0.75  # a queue that has shrunk to this meanwhile is being dealt with
SETTLE_S = 10.0  # after a change, until its effect shows
WHILE_S = 60.0  # how far back shrinking looks at first
LONGEST_WHILE_S = 960.0
PACES = 3  # the same in messages of one worker, where they take long
FRESH_S = 1.0  # seconds of work accounted for that make a new share

Bounds = tuple[int, int]
"""Fewest and most workers."""


@dataclass(frozen=True, slots=True)
class Signal:
    """One pool at one moment.

    Example: ``Signal(size=2, alive=2, busy=0.97, backlog=6, age_s=4.2, starved=0.4)``: two workers that never rest, while
    four orders wait beside the two in hand and the learner waits for 40 % of its time.
    """

    size: int  # workers wanted
    alive: int  # of them, those that have answered
    busy: float  # share of the last interval that they spent working, 0 to 1
    backlog: int  # messages that wait or are in hand
    age_s: float  # of the oldest of them
    starved: float | None = None  # share of its time that the learner waited for this pool; None: unknown

    @property
    def suffers(self) -> bool:
        """Whether anybody is the worse for this pool's pace."""
        return self.age_s >= OLD_S if self.starved is None else self.starved >= WAITING

    @property
    def pace_s(self) -> float:
        """About how long a message takes a worker: the oldest has seen all that are before it."""
        return self.age_s * min(1.0, self.alive / max(1, self.backlog))

    @property
    def need(self) -> int:
        """Workers that this moment has work for. A burst is worth as many as can share it, if somebody suffers."""
        steady = ceil(round(self.busy * self.alive / ROOM, 6))
        return max(steady, min(self.size, self.backlog)) if self.suffers else steady


class Autoscaler:
    """One pool's size between two bounds. `wanted` is called every few seconds."""

    def __init__(self, bounds: Bounds) -> None:
        least, most = bounds
        assert 1 <= least <= most, bounds
        self.bounds = bounds
        self._needs: deque[tuple[float, int]] = deque()  # (time, workers that the load of the moment needs)
        self._began_s: float | None = None
        self._changed_s = float("-inf")
        self._pressed: tuple[float, int] | None = None  # (since when there are reasons to grow, messages then)
        self._while_s = WHILE_S
        self._left = 0  # the size that the last shrinking left, until growing regrets it

    def wanted(self, signal: Signal, now_s: float) -> int:
        """The size from now on, always inside the bounds. ``now_s`` never goes back."""
        least, most = self.bounds
        inside = min(max(signal.size, least), most)
        if inside != signal.size:
            return self._change(inside, now_s)
        self._note(signal, now_s)
        if now_s - self._changed_s < max(SETTLE_S, PACES * signal.pace_s):
            self._pressed = None
            return signal.size
        whole = signal.alive >= signal.size
        if not whole:  # what is asked for has yet to come
            self._pressed = None
        elif self._must_grow(signal, now_s):
            return self._grow(signal, now_s)
        need = max(least, max(need for _, need in self._needs))
        # Those that are there may be too many, also where others never find a place.
        if need < (signal.size if whole else signal.alive) and self._known_for(now_s) >= self._while_s:
            self._left = signal.size
            return self._change(need, now_s)
        return signal.size

    def _note(self, signal: Signal, now_s: float) -> None:
        """Remember what this moment needs, and forget what is older than a while."""
        if self._began_s is None:
            self._began_s = now_s
        self._needs.append((now_s, signal.need))
        while self._needs[0][0] < now_s - self._while_s:
            self._needs.popleft()

    def _known_for(self, now_s: float) -> float:
        """Seconds of this size that can be looked back upon."""
        assert self._began_s is not None
        return now_s - max(self._began_s, self._changed_s)

    def _must_grow(self, signal: Signal, now_s: float) -> bool:
        """Whether there have been reasons to grow for long enough."""
        if not (signal.suffers and signal.busy >= BUSY and signal.backlog > signal.alive):
            self._pressed = None
            return False
        if self._pressed is None or signal.backlog < DRAINS * self._pressed[1]:
            self._pressed = (now_s, signal.backlog)
        return now_s - self._pressed[0] >= max(PRESSED_S, signal.pace_s)

    def _grow(self, signal: Signal, now_s: float) -> int:
        """Enough for the learner not to wait, at most twice as many, and no more than there are messages."""
        starved = 0.5 if signal.starved is None else min(signal.starved, 0.5)
        enough = max(signal.size + 1, ceil(round(signal.size / (1 - starved), 6)))
        size = min(enough, signal.backlog)
        if self._left:  # shrinking was wrong: back at once, and slower to do it again
            size = max(size, self._left)
            self._left = 0
            self._while_s = min(2 * self._while_s, LONGEST_WHILE_S)
        size = min(size, self.bounds[1])
        return size if size == signal.size else self._change(size, now_s)

    def _change(self, size: int, now_s: float) -> int:
        self._changed_s, self._pressed = now_s, None
        return size


@dataclass(slots=True)
class Share:
    """Which share of the time that some workers have accounted for went into certain parts, since the last look.

    Accounts are settled when a piece of work ends, be that minutes later, so the clock is theirs and not ours: while less
    than `FRESH_S` has been settled, the last share stands.
    """

    parts: frozenset[str]
    value: float = 0.0
    _before: dict[str, Mapping[str, float]] = field(default_factory=dict)

    def look(self, spent: Mapping[str, Mapping[str, float]]) -> float:
        """``spent``: worker -> seconds by part, ever. Whoever is new, or began anew, counts from now on."""
        gains = {worker: self._gains(worker, seconds) for worker, seconds in spent.items()}
        self._before = {worker: {**seconds} for worker, seconds in spent.items() if not gains[worker]} | {
            worker: before for worker, before in self._before.items() if gains.get(worker)
        }
        total = sum(sum(parts.values()) for parts in gains.values())
        if total >= FRESH_S:
            inside = sum(gain for parts in gains.values() for part, gain in parts.items() if part in self.parts)
            self.value = inside / total
            self._before = dict(spent)
        return self.value

    def _gains(self, worker: str, seconds: Mapping[str, float]) -> dict[str, float]:
        """Seconds by part since the last share; empty for a worker that has no past, or another one's."""
        before = self._before.get(worker)
        if before is None or any(seconds.get(part, 0.0) < value for part, value in before.items()):
            return {}
        return {part: value - before.get(part, 0.0) for part, value in seconds.items()}
