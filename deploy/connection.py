"""How the processes of one run find each other: Redis for messages, a named directory for weights, metrics for operators."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from common.protocols import Meter
from common.transport.connection import connect
from common.transport.embedded import EmbeddedRedis
from common.transport.redis_broker import RedisBroker

REDIS_URL = "DROVER_REDIS_URL"


@dataclass(frozen=True, slots=True)
class Connection:
    """How a process joins the run. The URL holds a password: it is never shown."""

    run: str
    redis_url: str = field(repr=False)

    @property
    def directory(self) -> str:
        """Name of the Ray actor that holds the weights' references."""
        return f"{self.run}-weights"

    def open(self) -> RedisBroker:
        """A broker of this process's own."""
        return RedisBroker(self.redis_url, self.run)


@contextmanager
def redis_url() -> Iterator[str]:
    """The Redis that DROVER_REDIS_URL names, else an embedded one that lives as long as the block."""
    url = os.environ.get(REDIS_URL)
    if url:
        connect(url).close()  # fails here, with the remedy, rather than in every role
        yield url
        return
    with EmbeddedRedis() as server:
        yield server.url


def serve_metrics() -> tuple[Meter, str]:
    """This process's meter, and the address on loopback where Prometheus finds it."""
    from common.exporter import PrometheusMeter

    meter = PrometheusMeter()
    _, port = meter.serve()
    return meter, f"127.0.0.1:{port}"
