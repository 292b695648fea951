"""Renew the leases of living consumers in one thread per broker, however long their work takes."""

from __future__ import annotations

import logging
import weakref
from threading import Event, Lock, Thread
from typing import Protocol

from drover.common.errors import TransportError

IDLE_S = 60.0

log = logging.getLogger(__name__)


class Renewable(Protocol):
    lease_s: float

    def renew(self) -> None: ...


class _Watched:
    """The streams to renew, as weak references: a consumer that is gone must lose its lease."""

    def __init__(self) -> None:
        self.streams: weakref.WeakSet[Renewable] = weakref.WeakSet()
        self.lock = Lock()
        self.changed = Event()
        self.stopped = False

    def interval_s(self) -> float:
        """A third of the shortest lease: two beats may fail before one is lost."""
        with self.lock:
            return min((stream.lease_s / 3 for stream in self.streams), default=IDLE_S)

    def renew(self) -> None:
        with self.lock:
            streams = list(self.streams)
        for stream in streams:
            try:
                stream.renew()
            except TransportError as error:  # if the lease runs out, the messages are delivered again
                log.warning("lease heartbeat failed: %s", error)

    def stop(self) -> None:
        self.stopped = True
        self.changed.set()


class Heartbeat:
    """Renews every watched stream until stopped, or until ``owner``, which all the streams refer to, is garbage."""

    def __init__(self, owner: object) -> None:
        self._watched = _Watched()
        self._thread: Thread | None = None
        weakref.finalize(owner, self._watched.stop)

    def watch(self, stream: Renewable) -> None:
        with self._watched.lock:
            self._watched.streams.add(stream)
            if self._thread is None:
                self._thread = Thread(target=_beat, args=(self._watched,), name="lease heartbeat", daemon=True)
                self._thread.start()
        self._watched.changed.set()

    def stop(self) -> None:
        self._watched.stop()


def _beat(watched: _Watched) -> None:
    while not watched.stopped:
        if watched.changed.wait(watched.interval_s()):
            watched.changed.clear()  # a new stream, perhaps with a shorter lease
        else:
            watched.renew()
