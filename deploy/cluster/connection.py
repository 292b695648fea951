"""How the processes of one run find each other: Redis for messages, a named directory for weights, metrics for operators."""

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

REDIS_URL = "DROVER_REDIS_URL"  # or several with spaces between them: the blobs are spread over all
REDIS_PASSWORD = "DROVER_REDIS_PASSWORD"  # or DROVER_REDIS_PASSWORD_FILE, a file's path
REDIS_CA = "DROVER_REDIS_CA"  # path of the CA's certificate, the same on every node
LOOPBACK = "127.0.0.1"
EVERYWHERE = ("0.0.0.0", "::")
LEAST_REDIS_BYTES = 1 << 30
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # v2, v1


@dataclass(frozen=True, slots=True)
class Connection:
    """How a process joins the run. The URLs, with spaces between them, hold a password: they are never shown."""

    run: str
    redis_url: str = field(repr=False)
    metrics_host: str = LOOPBACK  # where its processes serve their metrics
    blobs_s: float = BLOB_LIFETIME_S  # seconds that samples stay in Redis while a reader is missing

    @property
    def directory(self) -> str:
        """Name of the Ray actor that holds the weights' references."""
        return f"{self.run}-weights"

    def open(self) -> RedisBroker:
        """A broker of this process's own."""
        return RedisBroker(self.redis_url, self.run, blob_lifetime_s=self.blobs_s)


def own_redis_url() -> str:
    """The Redis that the environment names, its password and CA in the URL; "" without one. Never show it unmasked."""
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
    """What DROVER_REDIS_URL names, else an embedded one that lives as long as the block and takes up to a quarter of
    the machine's memory.
    """
    url = own_redis_url()
    if url:
        for one in addresses(url):
            connect(one).close()  # fails here, with the remedy, rather than in every role
        yield url
        return
    with EmbeddedRedis(max_memory_bytes=max(LEAST_REDIS_BYTES, memory_bytes() // 4)) as server:
        yield server.url


def memory_bytes() -> int:
    """What this process may use of the machine's memory, as far as the kernel says; 0 where it does not."""
    found = []
    with suppress(ValueError, OSError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in CGROUP_LIMITS:
        with suppress(ValueError, OSError):  # "max" where there is none
            found.append(int(limit.read_text()))
    return min(found, default=0)


def serve_metrics(host: str = LOOPBACK) -> tuple[Meter, str]:
    """This process's meter, and the HOST:PORT where Prometheus and the driver find it."""
    from drover.common.exporter import PrometheusMeter

    meter = PrometheusMeter()
    _, port = meter.serve(host=host)
    meter.set(metrics.BUILD_INFO, 1, version=version("drover-rl"))
    return meter, address(host, port)


def address(host: str, port: int) -> str:
    """What others call a port that listens on ``host``: by this node's own address where that is all of them."""
    if host in EVERYWHERE:
        from ray.util import get_node_ip_address

        host = get_node_ip_address()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
