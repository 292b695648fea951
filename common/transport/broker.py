"""The interface of the transport, in memory or on Redis: streams and blobs of one run, and its dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from drover.common.errors import BlobMissing, ConfigError
from drover.common.protocols import BlobStore, Stream
from drover.common.transport.keys import Keys

LEASE_S = 30.0  # a dead consumer's messages go to another after this time; a live consumer renews its leases
# Blobs are dropped when their group ends, for which slow GPUs may take hours; the lifetime ends those that were left over.
BLOB_LIFETIME_S = 86_400.0
RECHECK_S = 0.1  # the first wait of an idle consumer between looks for messages that other consumers left,
LONGEST_RECHECK_S = 1.0  # and the longest, after doubling


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that no consumer could finish: its bytes, the reason, and the stream that it was taken from."""

    payload: bytes
    reason: str
    stream: str
    group: str
    attempt: int


class Broker(Protocol):
    """The transport of one run. Closing it closes its streams."""

    keys: Keys

    def stream(
        self,
        key: str,
        group: str | None = None,
        consumer: str | None = None,
        *,
        groups: Sequence[str] = (),
        lease_s: float = LEASE_S,
    ) -> Stream:
        """A stream for one consumer of ``group``, or for ``put`` alone when that is None.

        ``groups`` are all groups that read this key: an entry is kept until each of them has acknowledged it. Every caller
        should name them, so that no group misses entries from before its start. ``consumer`` defaults to a unique name.
        Opening a name that is already in use takes it over: its unacknowledged messages are redelivered at once.
        """

    def blobs(self) -> BlobStore: ...

    def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """The newest ``limit`` dead letters, newest first."""

    def forget(self) -> None:
        """Delete everything of the run. Only the process that started the run may call this, when the run is over."""

    def close(self) -> None: ...


def needs_group(key: str) -> ConfigError:
    return ConfigError(f"this stream on {key} was opened to put only; name a consumer group to take from it")


def blob_missing(blob: str, offset: int, nbytes: int | None) -> BlobMissing:
    end = "its end" if nbytes is None else offset + nbytes
    return BlobMissing(
        f"blob {blob!r} lacks bytes {offset} to {end}: it was dropped, outlived its lifetime, or is shorter"
    )
