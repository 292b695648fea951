"""Connects the processes of one run: Redis for messages, a named directory for weights, an address for each one's metrics."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from drover.common import metrics, secrets
from drover.common.errors import ConfigError
from drover.common.protocols import Meter
from drover.common.transport.broker import BLOB_LIFETIME_S
from drover.common.transport.connection import addresses, complete, connect
from drover.common.transport.embedded import EmbeddedRedis
from drover.common.transport.redis_broker import RedisBroker

REDIS_URL = "DROVER_REDIS_URL"  # one URL, or several separated by spaces: the blobs are spread over all
REDIS_PASSWORD = "DROVER_REDIS_PASSWORD"  # or DROVER_REDIS_PASSWORD_FILE, a file's path
REDIS_CA = "DROVER_REDIS_CA"  # path of the CA's certificate, the same on every node
LOOPBACK = "127.0.0.1"
EVERYWHERE = ("0.0.0.0", "::")
LEAST_REDIS_BYTES = 1 << 30
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # v2, v1


@dataclass(frozen=True, slots=True)
class Connection:
    """The addresses by which a process joins the run. ``redis_url`` (URLs separated by spaces) has passwords: never show it."""

    run: str
    redis_url: str = field(repr=False)
    metrics_host: str = LOOPBACK  # the address at which processes serve their metrics
    blobs_s: float = BLOB_LIFETIME_S  # seconds that samples stay in Redis while a reader is missing

    @property
    def directory(self) -> str:
        """Name of the Ray actor that holds the weights' references."""
        return f"{self.run}-weights"

    def open(self) -> RedisBroker:
        """Open a broker for this process."""
        return RedisBroker(self.redis_url, self.run, blob_lifetime_s=self.blobs_s)


def own_redis_url() -> str:
    """Return the URL of the Redis that the environment names, with password and CA; "" without one. Never show it unmasked."""
    url, ca = os.environ.get(REDIS_URL, ""), os.environ.get(REDIS_CA, "")
    if not url:
        return ""
    if ca and not Path(ca).is_file():
        raise ConfigError(
            f"{REDIS_CA} names the file {ca!r}, which is not there; give the path of the CA's certificate"
        )
    ca = str(Path(ca).resolve()) if ca else ""  # roles work in other folders
    password = secrets.from_environment(REDIS_PASSWORD)
    return " ".join(complete(one, password=password, ca=ca) for one in addresses(url))


@contextmanager
def redis_url() -> Iterator[str]:
    """Give the URL of the Redis that DROVER_REDIS_URL names; without one, of an embedded Redis.

    The embedded Redis runs until the block ends, and takes up to a quarter of the machine's memory, or 1 GiB if more.
    """
    url = own_redis_url()
    if url:
        for one in addresses(url):
            connect(one).close()  # an error comes from here, with its fix, rather than from every role
        yield url
        return
    with EmbeddedRedis(max_memory_bytes=max(LEAST_REDIS_BYTES, memory_bytes() // 4)) as server:
        yield server.url


def memory_bytes() -> int:
    """Return the bytes of memory that this process may use, by the machine and its cgroup; 0 where neither is known."""
    found = []
    with suppress(ValueError, OSError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in CGROUP_LIMITS:
        with suppress(ValueError, OSError):  # "max" where there is none
            found.append(int(limit.read_text()))
    return min(found, default=0)


def serve_metrics(host: str = LOOPBACK) -> tuple[Meter, str]:
    """Serve this process's metrics; return its meter, and the HOST:PORT for Prometheus and the driver."""
    from drover.common.exporter import PrometheusMeter

    meter = PrometheusMeter()
    _, port = meter.serve(host=host)
    meter.set(metrics.BUILD_INFO, 1, version=version("drover-rl"))
    return meter, address(host, port)


def address(host: str, port: int) -> str:
    """Return HOST:PORT by which other nodes reach a port that listens on ``host``.

    HOST is this node's own address if the port listens on all addresses.
    """
    if host in EVERYWHERE:
        from ray.util import get_node_ip_address

        host = get_node_ip_address()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
