"""Decides the size of a pool from its load. Pure: takes numbers, returns numbers; knows no Ray, no Redis and no clock.

A pool grows if three conditions hold at once: its workers have no idle time left, more messages are unacknowledged than
there are workers, and the learner waits for this pool (where that is not known: the oldest message is old). The age of a
queue alone is a weak sign: slots bound the open work and orders come in bursts, so even a fast enough pool has old messages.

A pool shrinks to the largest need within a recent window. The window doubles each time that the pool grows again after
shrinking. So workers soon stay through a periodic load with a period up to `LONGEST_WHILE_S`; slower changes are followed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

BUSY = 0.85  # workers that work this share of their time have no idle time left
ROOM = 0.75  # the busy share that shrinking aims at; well below BUSY, or the pool would grow again at once
WAITING = 0.1  # the learner's time spent waiting for a pool, as a share, that justifies another worker
OLD_S = 0.5  # the age of the oldest message that justifies one, where the learner's waiting is not known
PRESSED_S = 5.0  # how long the reasons to grow must last
DRAINS = 0.75  # a queue that has shrunk to this share meanwhile is draining, and the reasons count anew
SETTLE_S = 10.0  # pause after a change, until its effect shows
WHILE_S = 60.0  # length of the window of shrinking at first
LONGEST_WHILE_S = 960.0
PACES = 3  # the pause is at least the time that a worker takes for so many messages
FRESH_S = 1.0  # seconds of accounted time that make a new share

Bounds = tuple[int, int]
"""Fewest and most workers."""


@dataclass(frozen=True, slots=True)
class Signal:
    """The measured load of one pool at one moment.

    Example: ``Signal(size=2, alive=2, busy=0.97, backlog=6, age_s=4.2, starved=0.4)``: two workers are almost always
    busy, four orders wait beside the two in hand, and the learner spends 40 % of its time waiting.
    """

    size: int  # workers wanted
    alive: int  # those of them that have answered
    busy: float  # share of the last interval that they spent working, 0 to 1
    backlog: int  # messages that wait or are in hand
    age_s: float  # age of the oldest of these messages
    starved: float | None = None  # share of its time that the learner waited for this pool; None: unknown

    @property
    def suffers(self) -> bool:
        """Whether the pool's pace delays the learner."""
        return self.age_s >= OLD_S if self.starved is None else self.starved >= WAITING

    @property
    def pace_s(self) -> float:
        """Estimate of the seconds that a worker takes for a message: the oldest message waited for those before it."""
        return self.age_s * min(1.0, self.alive / max(1, self.backlog))

    @property
    def need(self) -> int:
        """Workers that this moment's load justifies; while the learner waits, one per message up to the present size."""
        steady = ceil(round(self.busy * self.alive / ROOM, 6))
        return max(steady, min(self.size, self.backlog)) if self.suffers else steady


class Autoscaler:
    """Decides one pool's size between two bounds. `wanted` is called every few seconds."""

    def __init__(self, bounds: Bounds) -> None:
        least, most = bounds
        assert 1 <= least <= most, bounds
        self.bounds = bounds
        self._needs: deque[tuple[float, int]] = deque()  # (time, `Signal.need`) within the window
        self._began_s: float | None = None
        self._changed_s = float("-inf")
        self._pressed: tuple[float, int] | None = None  # (time since which there are reasons to grow, messages then)
        self._while_s = WHILE_S
        self._left = 0  # the size before the last shrinking, until the pool grows again

    def wanted(self, signal: Signal, now_s: float) -> int:
        """Return the pool's size from now on, always inside the bounds. ``now_s`` never goes back."""
        least, most = self.bounds
        inside = min(max(signal.size, least), most)
        if inside != signal.size:
            return self._change(inside, now_s)
        self._note(signal, now_s)
        if now_s - self._changed_s < max(SETTLE_S, PACES * signal.pace_s):
            self._pressed = None
            return signal.size
        whole = signal.alive >= signal.size
        if not whole:  # workers that were asked for are not up yet
            self._pressed = None
        elif self._must_grow(signal, now_s):
            return self._grow(signal, now_s)
        need = max(least, max(need for _, need in self._needs))
        # Shrinking is possible also while some workers are not up, which may never find a place.
        if need < (signal.size if whole else signal.alive) and self._known_for(now_s) >= self._while_s:
            self._left = signal.size
            return self._change(need, now_s)
        return signal.size

    def _note(self, signal: Signal, now_s: float) -> None:
        """Add the need of this moment, and drop needs older than the window."""
        if self._began_s is None:
            self._began_s = now_s
        self._needs.append((now_s, signal.need))
        while self._needs[0][0] < now_s - self._while_s:
            self._needs.popleft()

    def _known_for(self, now_s: float) -> float:
        """Seconds for which the pool has had this size."""
        assert self._began_s is not None
        return now_s - max(self._began_s, self._changed_s)

    def _must_grow(self, signal: Signal, now_s: float) -> bool:
        """Return whether the reasons to grow have lasted long enough."""
        if not (signal.suffers and signal.busy >= BUSY and signal.backlog > signal.alive):
            self._pressed = None
            return False
        if self._pressed is None or signal.backlog < DRAINS * self._pressed[1]:
            self._pressed = (now_s, signal.backlog)
        return now_s - self._pressed[0] >= max(PRESSED_S, signal.pace_s)

    def _grow(self, signal: Signal, now_s: float) -> int:
        """Grow until the learner would not wait: at most to twice the size, and to one worker per message."""
        starved = 0.5 if signal.starved is None else min(signal.starved, 0.5)
        enough = max(signal.size + 1, ceil(round(signal.size / (1 - starved), 6)))
        size = min(enough, signal.backlog)
        if self._left:  # shrinking was wrong: restore the size at once, and use a longer window
            size = max(size, self._left)
            self._left = 0
            self._while_s = min(2 * self._while_s, LONGEST_WHILE_S)
        size = min(size, self.bounds[1])
        return size if size == signal.size else self._change(size, now_s)

    def _change(self, size: int, now_s: float) -> int:
        self._changed_s, self._pressed = now_s, None
        return size


@dataclass(slots=True)
class TimeShare:
    """Measures the share of some workers' time that went into certain parts of their accounts since the last look.

    Workers add to their accounts when a piece of work ends, which may take minutes. So the total is the time in the
    accounts, not that of our clock, and while they have gained less than `FRESH_S`, the last share stands.
    """

    parts: frozenset[str]
    value: float = 0.0
    _before: dict[str, Mapping[str, float]] = field(default_factory=dict)

    def look(self, spent: Mapping[str, Mapping[str, float]]) -> float:
        """Return the share. ``spent``: worker -> seconds by part since its start. New and restarted workers count from now on."""
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
        """Return the seconds by part since the last share; empty for a worker that is new or has restarted."""
        before = self._before.get(worker)
        if before is None or any(seconds.get(part, 0.0) < value for part, value in before.items()):
            return {}
        return {part: value - before.get(part, 0.0) for part, value in seconds.items()}
