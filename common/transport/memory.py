"""The transport inside one process: the semantics of Redis streams, shared by threads. Crosses no process boundary.

Messages are encoded here too, so that a recipe that runs in one process also runs on many. A living consumer keeps its
leases, as its heartbeat would; a consumer whose stream object is gone loses them when they run out.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import islice
from threading import Condition, Lock
from time import monotonic

from drover.common.protocols import Delivery
from drover.common.transport.broker import BLOB_LIFETIME_S, LEASE_S, RECHECK_S, DeadLetter, blob_missing, needs_group
from drover.common.transport.codec import decode, encode
from drover.common.transport.keys import MAX_DEAD, Keys
from drover.common.types import Message


@dataclass(slots=True)
class _Pending:
    owner: weakref.ref[MemoryStream] | None  # None once handed back
    attempt: int
    lease_ends_s: float


@dataclass(slots=True)
class _Group:
    last: int = 0  # id of the newest entry given to this group
    pending: dict[int, _Pending] = field(default_factory=dict)


@dataclass(slots=True)
class _Topic:
    """The state of one key: entries by rising id as (payload, put at), and the groups that read them. Guarded by ``changed``."""

    changed: Condition = field(default_factory=Condition)
    newest: int = 0
    entries: dict[int, tuple[bytes, float]] = field(default_factory=dict)
    groups: dict[str, _Group] = field(default_factory=dict)

    def group(self, name: str) -> _Group:
        return self.groups.setdefault(name, _Group())

    def settle(self, group: str, entry: int) -> None:
        """Acknowledge an entry, and delete it once no group waits for it."""
        self.group(group).pending.pop(entry, None)
        if all(entry <= other.last and entry not in other.pending for other in self.groups.values()):
            self.entries.pop(entry, None)


class MemoryBroker:
    """Keeps streams, blobs and dead letters of one run in one process."""

    def __init__(self, run: str, *, blob_lifetime_s: float = BLOB_LIFETIME_S) -> None:
        self.keys = Keys(run)
        self._topics: dict[str, _Topic] = {}
        self._lock = Lock()
        self._blob_lifetime_s = blob_lifetime_s
        self._blobs = MemoryBlobs(blob_lifetime_s)
        self._dead: deque[DeadLetter] = deque(maxlen=MAX_DEAD)
        self._streams: weakref.WeakSet[MemoryStream] = weakref.WeakSet()

    def stream(
        self,
        key: str,
        group: str | None = None,
        consumer: str | None = None,
        *,
        groups: Sequence[str] = (),
        lease_s: float = LEASE_S,
    ) -> MemoryStream:
        declared = tuple(dict.fromkeys([*groups, *([group] if group else [])]))
        with self._lock:
            topic = self._topics.setdefault(key, _Topic())
            with topic.changed:
                for name in declared:
                    topic.group(name)
            stream = MemoryStream(key, topic, self._dead, group, declared, lease_s)
            self._streams.add(stream)
        return stream

    def blobs(self) -> MemoryBlobs:
        return self._blobs

    def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        return list(islice(reversed(self._dead), limit))

    def forget(self) -> None:
        self._topics.clear()
        self._blobs = MemoryBlobs(self._blob_lifetime_s)

    def close(self) -> None:
        for stream in list(self._streams):
            stream.close()


class MemoryStream:
    """One consumer's view of one key; see `drover.common.protocols.Stream`."""

    def __init__(
        self,
        key: str,
        topic: _Topic,
        dead: deque[DeadLetter],
        group: str | None,
        groups: tuple[str, ...],
        lease_s: float,
    ) -> None:
        self._key = key
        self._topic = topic
        self._dead = dead
        self._group = group
        self._groups = groups
        self._lease_s = lease_s
        self._self = weakref.ref(self)

    def put(self, message: Message) -> None:
        payload = encode(message)
        with self._topic.changed:
            self._topic.newest += 1
            self._topic.entries[self._topic.newest] = (payload, monotonic())
            self._topic.changed.notify_all()

    def take(self, limit: int, wait_s: float) -> list[Delivery]:
        ends_s = monotonic() + wait_s
        with self._topic.changed:
            while True:
                claimed = self._claim(limit)
                left_s = ends_s - monotonic()
                if claimed or left_s <= 0:
                    break
                self._topic.changed.wait(min(left_s, RECHECK_S))
        return [Delivery(str(entry), decode(payload), attempt) for entry, payload, attempt in claimed]

    def ack(self, delivery: Delivery) -> None:
        with self._topic.changed:
            self._topic.settle(self._reader(), int(delivery.id))

    def hand_back(self, delivery: Delivery) -> None:
        with self._topic.changed:
            pending = self._pending().get(int(delivery.id))
            if pending is not None and pending.owner is self._self:
                pending.owner, pending.lease_ends_s = None, 0.0
                self._topic.changed.notify_all()

    def bury(self, delivery: Delivery, reason: str) -> None:
        letter = DeadLetter(encode(delivery.message), reason, self._key, self._reader(), delivery.attempt)
        self._dead.append(letter)
        self.ack(delivery)

    def backlog(self) -> tuple[int, float]:
        with self._topic.changed:
            group = self._topic.group(self._reader())
            put_at_s = [
                at_s for entry, (_, at_s) in self._topic.entries.items() if entry > group.last or entry in group.pending
            ]
        return len(put_at_s), monotonic() - put_at_s[0] if put_at_s else 0.0

    def outstanding(self) -> int:
        with self._topic.changed:
            return len(self._topic.entries)

    def unacknowledged(self) -> list[Message]:
        with self._topic.changed:
            return [decode(payload) for payload, _ in self._topic.entries.values()]

    def clear(self) -> None:
        with self._topic.changed:
            self._topic.entries.clear()
            if self._groups:
                self._topic.groups = {name: _Group() for name in self._groups}
            for group in self._topic.groups.values():
                group.pending.clear()
                group.last = self._topic.newest

    def close(self) -> None:
        if self._group is None:
            return
        with self._topic.changed:
            for pending in self._pending().values():
                if pending.owner is self._self:
                    pending.owner, pending.lease_ends_s = None, 0.0
            self._topic.changed.notify_all()

    def _reader(self) -> str:
        if self._group is None:
            raise needs_group(self._key)
        return self._group

    def _pending(self) -> dict[int, _Pending]:
        return self._topic.group(self._reader()).pending

    def _claim(self, limit: int) -> list[tuple[int, bytes, int]]:
        """Up to ``limit`` of (entry, payload, attempt): first entries that other consumers left, then new ones."""
        group, now_s = self._topic.group(self._reader()), monotonic()
        for pending in group.pending.values():
            if pending.owner is not None and pending.owner() is not None:
                pending.lease_ends_s = now_s + self._lease_s
        left = (entry for entry, pending in group.pending.items() if pending.lease_ends_s <= now_s)
        fresh = (entry for entry in self._topic.entries if entry > group.last)
        chosen = sorted(islice(left, limit)) or list(islice(fresh, limit))
        claimed = []
        for entry in chosen:
            attempt = group.pending[entry].attempt + 1 if entry in group.pending else 1
            group.pending[entry] = _Pending(self._self, attempt, now_s + self._lease_s)
            group.last = max(group.last, entry)
            claimed.append((entry, self._topic.entries[entry][0], attempt))
        return claimed


class MemoryBlobs:
    """Keeps blobs in one process; see `drover.common.protocols.BlobStore`."""

    def __init__(self, lifetime_s: float) -> None:
        self._lifetime_s = lifetime_s
        self._lock = Lock()
        self._held: dict[str, tuple[bytes, float]] = {}  # by rising time of expiry

    def put(self, blob: str, parts: Sequence[bytes | memoryview]) -> None:
        content = b"".join(parts)
        with self._lock:
            self._expire()
            self._held.pop(blob, None)
            self._held[blob] = (content, monotonic() + self._lifetime_s)

    def get(self, blob: str, offset: int = 0, nbytes: int | None = None) -> bytes:
        with self._lock:
            self._expire()
            content, _ = self._held.get(blob, (b"", 0.0))
        found = content[offset:] if nbytes is None else content[offset : offset + nbytes]
        if nbytes != 0 and len(found) < (nbytes or 1):
            raise blob_missing(blob, offset, nbytes)
        return found

    def drop(self, blobs: Sequence[str]) -> None:
        with self._lock:
            for blob in blobs:
                self._held.pop(blob, None)

    def sweep(self, part: str, keep: Collection[str] = ()) -> None:
        with self._lock:
            self._held = {blob: held for blob, held in self._held.items() if part not in blob or blob in keep}

    def _expire(self) -> None:
        now_s = monotonic()
        while self._held:
            oldest = next(iter(self._held))
            if self._held[oldest][1] > now_s:
                return
            del self._held[oldest]
