"""The declared metrics as a Prometheus endpoint. The only place that knows Prometheus."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from threading import Lock, Thread
from types import TracebackType
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, start_wsgi_server

from common.errors import ConfigError
from common.metrics import ALL, LABEL_VALUES, Kind, Metric, check_call

# A label value that is none of the first so many becomes "other": an error text used as a reason must not grow the
# scrape without bound.
MAX_OPEN_VALUES = 64


class PrometheusMeter:
    """A `Meter` over one registry. Calls that do not fit a declaration raise ValueError. Thread-safe."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        disable_created_metrics()  # the scrape's own time says as much, at half the series
        self.registry = registry if registry is not None else CollectorRegistry()
        self._collectors = {metric: _collector(metric, self.registry) for metric in ALL}
        self._seen: dict[str, set[str]] = {label: set() for label, allowed in LABEL_VALUES.items() if allowed is None}
        self._lock = Lock()

    def add(self, metric: object, value: float = 1.0, **labels: str) -> None:
        collector = self._series("add", metric, labels)
        if isinstance(collector, Histogram):
            collector.observe(value)
        else:
            assert isinstance(collector, Counter)
            collector.inc(value)

    def set(self, metric: object, value: float, **labels: str) -> None:
        collector = self._series("set", metric, labels)
        assert isinstance(collector, Gauge)
        collector.set(value)

    def serve(self, port: int = 0, host: str = "127.0.0.1") -> tuple[MetricsServer, int]:
        """Answer ``GET /metrics`` from a daemon thread. Returns the server and its port; port 0 takes a free one.

        Metrics carry no secrets but name rewards and workers: listen beyond loopback only behind a network policy.
        """
        try:
            server, thread = start_wsgi_server(port, addr=host, registry=self.registry)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                fix = "stop what listens there, or choose another port (0 takes a free one)"
            else:
                fix = "choose an address of this machine and a port you may open (0 takes a free one)"
            raise ConfigError(f"cannot serve metrics on {host}:{port} ({error.strerror}); {fix}.") from error
        return MetricsServer(server, thread), server.server_port

    def _series(self, verb: str, metric: object, labels: Mapping[str, str]) -> Counter | Gauge | Histogram:
        declared = check_call(verb, metric, labels)
        collector = self._collectors.get(declared)
        if collector is None:
            raise ValueError(f"{declared.name} is not in common.metrics.ALL; declare it in common/metrics.py.")
        if not labels:
            return collector
        return collector.labels(**{label: self._bounded(label, value) for label, value in labels.items()})

    def _bounded(self, label: str, value: str) -> str:
        seen = self._seen.get(label)
        if seen is None or value in seen:
            return value
        with self._lock:
            if len(seen) >= MAX_OPEN_VALUES:
                return "other"
            seen.add(value)
            return value


class MetricsServer:
    """A running endpoint. Closing frees the port."""

    def __init__(self, server: WSGIServer, thread: Thread) -> None:
        self._server = server
        self._thread = thread

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _collector(metric: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    # prometheus_client adds the `_total` of a counter itself.
    name = metric.name.removesuffix("_total")
    if metric.kind is Kind.HISTOGRAM:
        return Histogram(name, metric.help, metric.labels, unit=metric.unit, buckets=metric.buckets, registry=registry)
    kind = Counter if metric.kind is Kind.COUNTER else Gauge
    return kind(name, metric.help, metric.labels, unit=metric.unit, registry=registry)
