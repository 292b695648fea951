"""One consumer of one Redis stream; see `drover.common.protocols.Stream`. Its atomic operations are in `scripts.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock
from time import monotonic
from typing import Any, TypeVar
from uuid import uuid4

import redis
from redis import exceptions as failures

from drover.common.errors import CodecError, TransportError
from drover.common.protocols import Delivery
from drover.common.transport import scripts
from drover.common.transport.broker import LONGEST_RECHECK_S, RECHECK_S, needs_group
from drover.common.transport.codec import decode, encode
from drover.common.transport.connection import Link, send
from drover.common.transport.keys import MAX_DEAD
from drover.common.types import Message

T = TypeVar("T")

CLOSE_PATIENCE_S = 2.0


class RedisStream:
    """Takes and puts messages of one key for one consumer. Created by `RedisBroker.stream`."""

    def __init__(
        self,
        link: Link,
        key: str,
        dead: str,
        group: str | None,
        consumer: str | None,
        groups: Sequence[str],
        lease_s: float,
    ) -> None:
        self.lease_s = lease_s
        self._link = link
        self._scripts: dict[str, Any] = {}
        self._key = key
        self._dead = dead
        self._group = group
        self._groups = tuple(dict.fromkeys([*groups, *([group] if group else [])]))
        self._consumer = consumer or uuid4().hex
        self._held: set[str] = set()
        self._lock = Lock()  # guards _held, which the heartbeat reads
        self._reclaims_at_s = 0.0
        self._recheck_s = RECHECK_S
        self._create_groups()
        self._losses = link.retries
        if group is not None and consumer is not None:
            # The former consumer of this name is dead or cut off: its messages must not wait until their lease runs out.
            self._link.call(self._disown)

    def put(self, message: Message) -> None:
        payload, tried = encode(message), False

        def once(client: redis.Redis) -> None:
            nonlocal tried
            if tried and self._script(client, scripts.HOLDS, payload):
                return  # only the answer was lost with the connection
            tried = True
            send(client, "XADD", self._key, "*", "m", payload)

        self._link.call(once)

    def take(self, limit: int, wait_s: float) -> list[Delivery]:
        ends_s = monotonic() + wait_s
        while True:
            deliveries = self._opened(self._in_group(lambda client: self._claim(client, limit, ends_s - monotonic())))
            if deliveries or monotonic() >= ends_s:
                return deliveries

    def ack(self, delivery: Delivery) -> None:
        self._settle(delivery.id)

    def hand_back(self, delivery: Delivery) -> None:
        self._run(scripts.HAND_BACK, self._reader(), self._consumer, delivery.id)
        self._release(delivery.id)

    def bury(self, delivery: Delivery, reason: str) -> None:
        self._bury(delivery.id, encode(delivery.message), delivery.attempt, reason)

    def backlog(self) -> tuple[int, float]:
        count, age_ms = self._in_group(lambda client: self._script(client, scripts.BACKLOG, self._reader()))
        return int(count), age_ms / 1000

    def outstanding(self) -> int:
        return int(self._link.call(lambda client: send(client, "XLEN", self._key)))

    def unacknowledged(self) -> list[Message]:
        entries = self._link.call(lambda client: send(client, "XRANGE", self._key, "-", "+"))
        messages = []
        for _, fields in entries:
            with suppress(CodecError):
                messages.append(decode(fields[b"m"]))
        return messages

    def clear(self) -> None:
        self._run(scripts.CLEAR, *self._groups)
        with self._lock:
            self._held.clear()

    def close(self) -> None:
        if self._group is None:
            return
        with self._lock:
            held = list(self._held)
            self._held.clear()
        try:
            if held:
                self._run(scripts.HAND_BACK, self._group, self._consumer, *held, patience_s=CLOSE_PATIENCE_S)
            self._run(scripts.LEAVE, self._group, self._consumer, patience_s=CLOSE_PATIENCE_S)
        except TransportError:
            pass  # Redis is gone: the leases run out by themselves

    def renew(self) -> None:
        """Renew the leases of the messages that this consumer has taken. Called by the heartbeat."""
        with self._lock:
            held = list(self._held)
        if held:
            lost = self._run(scripts.RENEW, self._reader(), self._consumer, *held)
            with self._lock:
                self._held.difference_update(entry.decode() for entry in lost)

    # ------------------------------------------------------------------------------------------ taking

    def _claim(self, client: redis.Redis, limit: int, wait_s: float) -> list[tuple[str, bytes, int]]:
        """Up to ``limit`` of (entry, payload, attempt): first entries that other consumers left, then new ones."""
        if self._losses != self._link.retries:
            self._losses = self._link.retries
            self._disown(client)
        if monotonic() >= self._reclaims_at_s:
            left = self._script(
                client, scripts.RECLAIM, self._reader(), self._consumer, int(1000 * self.lease_s), limit
            )
            if left:
                self._recheck_s = RECHECK_S
                return [(entry.decode(), fields[1], attempt) for entry, fields, attempt in left]
            self._reclaims_at_s = monotonic() + min(self.lease_s / 2, self._recheck_s)
            # A thousand idle consumers must not keep Redis busy with their looks for left entries.
            self._recheck_s = min(2 * self._recheck_s, LONGEST_RECHECK_S)
        block_ms = int(1000 * min(wait_s, self._reclaims_at_s - monotonic()))
        block = ("BLOCK", block_ms) if block_ms > 0 else ()
        try:
            reply = send(
                client,
                "XREADGROUP",
                "GROUP",
                self._reader(),
                self._consumer,
                "COUNT",
                limit,
                *block,
                "STREAMS",
                self._key,
                ">",
            )
        except failures.ResponseError as error:
            if "UNBLOCKED" in str(error):
                return []
            raise
        return [(entry.decode(), fields[b"m"], 1) for _, entries in reply or [] for entry, fields in entries]

    def _disown(self, client: redis.Redis) -> None:
        """Release the messages that Redis counts as ours although this process never got them."""
        with self._lock:
            held = list(self._held)
        self._script(client, scripts.DISOWN, self._reader(), self._consumer, *held)

    def _opened(self, claimed: list[tuple[str, bytes, int]]) -> list[Delivery]:
        with self._lock:
            self._held.update(entry for entry, _, _ in claimed)
        deliveries = []
        for entry, payload, attempt in claimed:
            try:
                deliveries.append(Delivery(entry, decode(payload), attempt))
            except CodecError as error:
                self._bury(entry, payload, attempt, f"undecodable: {error}")
        return deliveries

    # ---------------------------------------------------------------------------------------- settling

    def _bury(self, entry: str, payload: bytes, attempt: int, reason: str) -> None:
        facts = ("m", payload, "reason", reason, "stream", self._key, "group", self._reader(), "attempt", attempt)
        command = ("XADD", self._dead, "MAXLEN", "~", MAX_DEAD, "*", *facts)
        self._link.call(lambda client: send(client, *command))
        self._settle(entry)

    def _settle(self, entry: str) -> None:
        self._run(scripts.SETTLE, self._reader(), entry)
        self._release(entry)

    def _release(self, entry: str) -> None:
        with self._lock:
            self._held.discard(entry)

    # ------------------------------------------------------------------------------------------- redis

    def _reader(self) -> str:
        if self._group is None:
            raise needs_group(self._key)
        return self._group

    def _create_groups(self) -> None:
        """Create the groups with the first entry as their start, so that no group misses an earlier message."""
        for group in self._groups:
            self._link.call(lambda client, group=group: _create_group(client, self._key, group))  # type: ignore[misc]

    def _in_group(self, action: Callable[[redis.Redis], T]) -> T:
        """Run ``action``; on a Redis that came back empty, create the groups again first."""
        self._reader()
        try:
            return self._link.call(action)
        except failures.ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
        self._create_groups()
        return self._link.call(action)

    def _run(self, script: str, *arguments: Any, patience_s: float | None = None) -> Any:
        return self._link.call(lambda client: self._script(client, script, *arguments), patience_s=patience_s)

    def _script(self, client: redis.Redis, script: str, *arguments: Any) -> Any:
        if script not in self._scripts:  # registering hashes the text, which is too slow for every message
            self._scripts[script] = client.register_script(script)
        return self._scripts[script](keys=[self._key], args=arguments, client=client)


def _create_group(client: redis.Redis, key: str, group: str) -> None:
    try:
        send(client, "XGROUP", "CREATE", key, group, "0", "MKSTREAM")
    except failures.ResponseError as error:
        if "BUSYGROUP" not in str(error):
            raise
