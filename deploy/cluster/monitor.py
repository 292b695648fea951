"""What only the driver can measure: the run's queues, its Redis, who is there. And the port where metrics are found."""

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
from drover.deploy.cluster.discovery import Endpoint
from drover.deploy.roles import Streams
from drover.deploy.run_folder.results import DRIVER, RunFolder

REWARD = keys.reward_group("")  # how the readers begin that are rewards
LONGEST_PACE_S = 15.0  # between two reads, up to which the end of the driver waits for the next
TOLD = ("work", "evaluation", "rollouts", "measurements")  # the queues that reports name


@dataclass(frozen=True, slots=True)
class Listen:
    """Where the driver serves metrics; its workers serve theirs on the same host, at free ports. Port 0 is a free one."""

    host: str = LOOPBACK
    port: int = 0


class Monitor:
    """The driver's own metrics and the way to everyone's. Only the driver's main thread calls `look`.

    ``scalars`` is what a report should say of it: ``queue/NAME/backlog|age_s`` by reader, ``redis/used_bytes`` and
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
        self._reads_s: deque[float] = deque(maxlen=2)  # when the driver's own metrics were read
        self._announced_s: float | None = None
        self._endpoints: dict[str, Endpoint] = {}  # replaced whole: the threads that answer read it
        self._server, self.address = self._serve(listen)
        self._own = {DRIVER: Endpoint(DRIVER, self.address)}
        self._endpoints = dict(self._own)
        self._folder.note_metrics(discovery.groups(run, self._endpoints))
        self._count_workers({})
        for stream, _ in self._queues:
            self._meter.add(metrics.DEAD_LETTERS, 0, stream=stream)  # there from the start, to be seen rising
        for how in metrics.ENDS:
            self._meter.set(metrics.RUN_ENDED, 0, how=how)

    def look(self, workers: Mapping[str, Endpoint]) -> None:
        """Measure; ``workers`` are those that serve metrics now."""
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
        """Export how the run has ended: "finished", "stopped" or "failed". A later word changes nothing."""
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
        """Seconds that leaving waits at most for Prometheus to read how the run ended, else it would take the run for lost.

        Who reads again and again is expected at the same pace; a single look is no reader.
        """
        if self._announced_s is None or len(self._reads_s) < 2 or self._reads_s[-1] >= self._announced_s:
            return 0.0
        before_s, last_s = self._reads_s
        return max(0.0, last_s + 2 * min(last_s - before_s, LONGEST_PACE_S) - time.monotonic())

    # ------------------------------------------------------------------------------------------ measuring

    def _count_workers(self, workers: Mapping[str, Endpoint]) -> None:
        roles = {endpoint.role for endpoint in (*workers.values(), *self._endpoints.values())}
        for role in roles:
            mine = {name: endpoint for name, endpoint in {**workers, **self._own}.items() if endpoint.role == role}
            # Every process takes a free port: the same worker at another address is another process.
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
                # Rollouts have several readers; the other streams one each.
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
