"""The transport between processes: Redis streams for messages, Redis strings for blobs. At least once, never trimmed.

An entry is deleted when every group has acknowledged it, so memory is bounded by the messages in flight. A put whose answer
is lost with the connection is repeated, unless its entry is there.

Blobs are nearly all of a run's bytes. They may be spread over several servers; a checksum of the blob's name chooses one, so
that no message needs to say where a blob is. All messages are on the first server.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any
from weakref import WeakSet
from zlib import crc32

from drover.common.errors import BlobTooLarge
from drover.common.transport.broker import BLOB_LIFETIME_S, LEASE_S, DeadLetter, blob_missing
from drover.common.transport.connection import PATIENCE_S, Link, addresses, send
from drover.common.transport.heartbeat import Heartbeat
from drover.common.transport.keys import Keys
from drover.common.transport.redis_stream import RedisStream
from drover.common.types import MAX_BLOB_BYTES


class RedisBroker:
    """Keeps streams, blobs and dead letters of one run on Redis, and blobs on several where given. Shared by threads."""

    def __init__(
        self, urls: str, run: str, *, blob_lifetime_s: float = BLOB_LIFETIME_S, patience_s: float = PATIENCE_S
    ) -> None:
        """``urls``: one, or several with spaces between them, the same in the same order for every process of the run."""
        self.keys = Keys(run)
        self._links = [Link(url, patience_s=patience_s) for url in addresses(urls)]
        self.link = self._links[0]
        self._blobs = RedisBlobs(self._links, self.keys, blob_lifetime_s)
        self._heartbeat = Heartbeat(self.link)
        self._streams: WeakSet[RedisStream] = WeakSet()

    def stream(
        self,
        key: str,
        group: str | None = None,
        consumer: str | None = None,
        *,
        groups: Sequence[str] = (),
        lease_s: float = LEASE_S,
    ) -> RedisStream:
        stream = RedisStream(self.link, key, self.keys.dead, group, consumer, groups, lease_s)
        self._streams.add(stream)
        if group is not None:
            self._heartbeat.watch(stream)
        return stream

    def tell_outages(self, tell: Callable[[str], None]) -> None:
        """Tell of a server that is away when it is first missed, and when it is back. By default, both are logged."""
        for link in self._links:
            link.on_outage = tell

    def blobs(self) -> RedisBlobs:
        return self._blobs

    def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        command = ("XREVRANGE", self.keys.dead, "+", "-", "COUNT", limit)
        entries = self.link.call(lambda client: send(client, *command))
        return [
            DeadLetter(
                payload=facts[b"m"],
                reason=facts[b"reason"].decode(),
                stream=facts[b"stream"].decode(),
                group=facts[b"group"].decode(),
                attempt=int(facts[b"attempt"]),
            )
            for _, facts in entries
        ]

    def buried_after(self, entry: str, limit: int = 1000) -> tuple[str, list[str]]:
        """(newest entry, the streams of all dead letters put after ``entry``, oldest first). ``entry`` "0" means all."""
        found = self.link.call(lambda client: send(client, "XRANGE", self.keys.dead, f"({entry}", "+", "COUNT", limit))
        streams = [facts[b"stream"].decode().removeprefix(self.keys.prefix) for _, facts in found]
        return (found[-1][0].decode() if found else entry), streams

    def memory(self) -> list[tuple[int, int]]:
        """(used bytes, for all users of the server; bytes it may use, 0 for no limit) of each server."""
        facts = [link.call(lambda client: client.info("memory")) for link in self._links]
        return [(int(one["used_memory"]), int(one.get("maxmemory", 0))) for one in facts]

    def forget(self) -> None:
        """Delete every key of the run. Only the process that started the run may call this, when the run is over."""
        _unlink(self._links, f"{self.keys.prefix}*")

    def close(self) -> None:
        self._heartbeat.stop()
        for stream in list(self._streams):
            stream.close()
        for link in self._links:
            link.close()


class RedisBlobs:
    """Keeps blobs of one run as Redis strings; see `drover.common.protocols.BlobStore`."""

    def __init__(self, links: Sequence[Link], keys: Keys, lifetime_s: float) -> None:
        self._links = links
        self._keys = keys
        self._lifetime_ms = max(1, int(1000 * lifetime_s))

    def put(self, blob: str, parts: Sequence[bytes | memoryview]) -> None:
        content = parts[0] if len(parts) == 1 else b"".join(parts)
        nbytes = memoryview(content).nbytes
        if nbytes > MAX_BLOB_BYTES:
            raise BlobTooLarge(
                f"blob {blob!r} has {nbytes >> 20} MiB, at most {MAX_BLOB_BYTES >> 20} fit; use fewer samples a group"
            )
        link = self._links[self._home(blob)]
        link.call(lambda _: send(link.bulk, "SET", self._keys.blob(blob), content, "PX", self._lifetime_ms))

    def get(self, blob: str, offset: int = 0, nbytes: int | None = None) -> bytes:
        key = self._keys.blob(blob)
        if nbytes == 0:
            return b""
        if offset == 0 and nbytes is None:
            content: bytes = self._call(blob, "GET", key) or b""
        else:
            content = self._call(blob, "GETRANGE", key, offset, -1 if nbytes is None else offset + nbytes - 1)
        if len(content) < (nbytes or 1):  # Redis answers "" for a key that is not there
            raise blob_missing(blob, offset, nbytes)
        return content

    def drop(self, blobs: Sequence[str]) -> None:
        together: dict[int, list[str]] = {}
        for blob in blobs:
            together.setdefault(self._home(blob), []).append(blob)
        for there in together.values():
            self._call(there[0], "UNLINK", *(self._keys.blob(blob) for blob in there))

    def sweep(self, part: str, keep: Collection[str] = ()) -> None:
        _unlink(self._links, self._keys.blob(f"*{part}*"), {self._keys.blob(blob).encode() for blob in keep})

    def _home(self, blob: str) -> int:
        """The number of the server that has the blob."""
        return crc32(blob.encode()) % len(self._links)

    def _call(self, blob: str, *command: Any) -> Any:
        return self._links[self._home(blob)].call(lambda client: send(client, *command))


def _unlink(links: Sequence[Link], pattern: str, keep: Collection[bytes] = ()) -> None:
    """Delete the keys that fit the pattern, on every server, except those to ``keep``."""
    for link in links:
        link.call(
            lambda client: [client.unlink(key) for key in client.scan_iter(pattern, count=1000) if key not in keep]
        )
