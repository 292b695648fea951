"""Measures the run's queues, Redis and workers from the driver, and serves the driver's metrics port."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

from drover.common import metrics
from drover.common.exporter import TEXT, MetricsServer, PrometheusMeter
from drover.common.transport import keys
from drover.common.transport.redis_broker import RedisBroker
from drover.deploy.cluster import discovery
from drover.deploy.cluster.connection import LOOPBACK, address
from drover.deploy.cluster.discovery import MetricsEndpoint
from drover.deploy.roles import Streams
from drover.deploy.run_folder.results import DRIVER, RunFolder

REWARD = keys.reward_group("")  # the prefix of the consumer groups of rewards
LONGEST_PACE_S = 15.0  # the driver's end waits for a reader whose reads are at most this far apart
TOLD = ("work", "evaluation", "rollouts", "measurements")  # the queues that reports name


@dataclass(frozen=True, slots=True)
class Listen:
    """The address at which the driver serves metrics; port 0 takes a free one. Workers serve theirs on ``host`` too."""

    host: str = LOOPBACK
    port: int = 0


class Monitor:
    """Exports the driver's metrics, and serves the addresses and pages of all workers. Only the main thread calls `look`.

    ``scalars`` has the newest values for reports: ``queue/NAME/backlog|age_s`` by reader, ``redis/used_bytes`` and
    ``redis/limit_bytes``.
    """

    def __init__(self, broker: RedisBroker, streams: Streams, folder: RunFolder, *, run: str, listen: Listen) -> None:
        """Raises `ConfigError` where the port is taken."""
        self._broker, self._folder, self._run = broker, folder, run
        self._queues = {
            (key.removeprefix(broker.keys.prefix), reader): streams.open(key, reader)
            for key, reader in streams.readers()
        }
        self.scalars: dict[str, float] = {}
        self._meter, self._buried = PrometheusMeter(), "0"
        self._reads_s: deque[float] = deque(maxlen=2)  # times at which Prometheus read the driver's metrics
        self._announced_s: float | None = None
        self._endpoints: dict[str, MetricsEndpoint] = {}  # replaced, never changed: the serving threads read it
        self._server, self.address = self._serve(listen)
        self._own = {DRIVER: MetricsEndpoint(DRIVER, self.address)}
        self._endpoints = dict(self._own)
        self._folder.note_metrics(discovery.groups(run, self._endpoints))
        self._count_workers({})
        for stream, _ in self._queues:
            self._meter.add(metrics.DEAD_LETTERS, 0, stream=stream)  # exported from the start, so that a rise is seen
        for how in metrics.ENDS:
            self._meter.set(metrics.RUN_ENDED, 0, how=how)

    def look(self, workers: Mapping[str, MetricsEndpoint]) -> None:
        """Measure queues, Redis and workers. ``workers``: the workers that serve metrics now."""
        self._count_workers(workers)
        endpoints = {**workers, **self._own}
        if endpoints != self._endpoints:
            self._endpoints = endpoints
            self._folder.note_metrics(discovery.groups(self._run, endpoints))
        self.scalars = self._queue_scalars() | self._redis_scalars()
        self._buried, streams = self._broker.buried_after(self._buried)
        for stream in streams:
            self._meter.add(metrics.DEAD_LETTERS, stream=stream)

    def announce(self, how: str) -> None:
        """Export how the run has ended: "finished", "stopped" or "failed". Later calls have no effect."""
        if self._announced_s is None:
            self._meter.set(metrics.RUN_ENDED, 1, how=how)
            self._announced_s = time.monotonic()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        while self.patience_s():
            time.sleep(0.1)
        self._server.close()

    def patience_s(self) -> float:
        """Seconds left to wait for Prometheus to read how the run ended; otherwise it would take the run for lost.

        The next read is expected after the time between the last two; a reader that read only once is not waited for.
        """
        if self._announced_s is None or len(self._reads_s) < 2 or self._reads_s[-1] >= self._announced_s:
            return 0.0
        before_s, last_s = self._reads_s
        return max(0.0, last_s + 2 * min(last_s - before_s, LONGEST_PACE_S) - time.monotonic())

    # ------------------------------------------------------------------------------------------ measuring

    def _count_workers(self, workers: Mapping[str, MetricsEndpoint]) -> None:
        roles = {endpoint.role for endpoint in (*workers.values(), *self._endpoints.values())}
        for role in roles:
            mine = {name: endpoint for name, endpoint in {**workers, **self._own}.items() if endpoint.role == role}
            # Every process takes a free port, so a worker at another address is a new process.
            deaths = sum(self._endpoints.get(name, now).address != now.address for name, now in mine.items())
            self._meter.set(metrics.WORKERS, len(mine), role=role)
            self._meter.set(metrics.RESERVED_CPUS, sum(endpoint.cpus for endpoint in mine.values()), role=role)
            self._meter.set(metrics.RESERVED_GPUS, sum(endpoint.gpus for endpoint in mine.values()), role=role)
            self._meter.add(metrics.WORKER_DEATHS, deaths, role=role)

    def _queue_scalars(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for (stream, reader), queue in self._queues.items():
            backlog, age_s = queue.backlog()
            self._meter.set(metrics.QUEUE_BACKLOG, backlog, stream=stream, reader=reader)
            self._meter.set(metrics.QUEUE_AGE_S, age_s, stream=stream, reader=reader)
            if stream in TOLD:
                # Rollouts have several readers, the other streams one each.
                name = reader.removeprefix(REWARD) if reader.startswith(REWARD) else stream
                found |= {f"queue/{name}/backlog": float(backlog), f"queue/{name}/age_s": age_s}
        return found

    def _redis_scalars(self) -> dict[str, float]:
        servers = self._broker.memory()
        for number, (used, limit) in enumerate(servers):
            self._meter.set(metrics.REDIS_MEMORY_BYTES, used, server=str(number))
            self._meter.set(metrics.REDIS_LIMIT_BYTES, limit, server=str(number))
        used, limit = max(servers, key=lambda server: server[0] / server[1] if server[1] else 0.0)  # the fullest
        return {"redis/used_bytes": float(used), "redis/limit_bytes": float(limit)}

    # -------------------------------------------------------------------------------------------- serving

    def _serve(self, listen: Listen) -> tuple[MetricsServer, str]:
        pages = {"/targets": self._targets_page, "/metrics/all": self._whole_page, "/metrics": self._own_page}
        server, port = self._meter.serve(listen.port, listen.host, pages)
        return server, address(listen.host, port)

    def _targets_page(self) -> tuple[str, bytes]:
        return "application/json", discovery.targets_page(self._run, self._endpoints)

    def _own_page(self) -> tuple[str, bytes]:
        self._reads_s.append(time.monotonic())
        return TEXT, self._meter.page().encode()

    def _whole_page(self) -> tuple[str, bytes]:
        self._reads_s.append(time.monotonic())
        return TEXT, discovery.everything(self._run, self._endpoints, {DRIVER: self._meter.page()})
