"""What a role asks of the transport, whichever it is: streams and blobs of one run, and its dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from drover.common.errors import BlobMissing, ConfigError
from drover.common.protocols import BlobStore, Stream
from drover.common.transport.keys import Keys

LEASE_S = 30.0  # a dead consumer's messages go to another after this long; a live one's are renewed
# Blobs are dropped when their group ends, for which slow GPUs may take hours; this catches what is left behind.
BLOB_LIFETIME_S = 86_400.0
RECHECK_S = 0.1  # how soon a consumer that begins to wait looks for what others left,
LONGEST_RECHECK_S = 1.0  # and how rarely at last


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message nobody could finish: its bytes, why, and where it was taken from."""

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

        ``groups`` are all groups that read this key: an entry is kept until each of them has acknowledged it. Whoever
        puts or takes should name them, so that no group misses what came before it started. ``consumer`` defaults to
        a unique name; one that was in use before is the successor's, and what the former life held goes out again at once.
        """

    def blobs(self) -> BlobStore: ...

    def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """The newest ``limit``, newest first."""

    def forget(self) -> None:
        """Delete everything of the run. Only for whoever started it, when it is over."""

    def close(self) -> None: ...


def needs_group(key: str) -> ConfigError:
    return ConfigError(f"this stream on {key} was opened to put only; name a consumer group to take from it")


def blob_missing(blob: str, offset: int, nbytes: int | None) -> BlobMissing:
    end = "its end" if nbytes is None else offset + nbytes
    return BlobMissing(
        f"blob {blob!r} lacks bytes {offset} to {end}: it was dropped, outlived its lifetime, or is shorter"
    )
