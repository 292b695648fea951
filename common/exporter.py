"""Serve the declared metrics as a Prometheus endpoint. The only place that knows Prometheus."""

from __future__ import annotations

import errno
import logging
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from http.client import HTTPConnection, HTTPException
from socketserver import ThreadingMixIn
from threading import Lock, Thread
from types import TracebackType
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    make_wsgi_app,
)
from prometheus_client.parser import text_string_to_metric_families

from drover.common.errors import ConfigError
from drover.common.metrics import ALL, LABEL_VALUES, Kind, Metric, check_call

# After this many different values of a label, further ones become "other": an error text used as a reason must not grow
# the scrape without bound.
MAX_OPEN_VALUES = 64

# Metrics of the process itself, which are not declared; on Linux only.
PROCESS_METRICS = ("process_cpu_seconds_total", "process_resident_memory_bytes")

TEXT = "text/plain; version=0.0.4; charset=utf-8"
MOST_PAGE_BYTES = 64 << 20  # limit of one page; a thousand workers have some 30 MB of metrics together

log = logging.getLogger(__name__)

Page = Callable[[], tuple[str, bytes]]
"""The answer to a path: content type and body."""


class PrometheusMeter:
    """A `Meter` over one registry. Calls that do not fit a declaration raise ValueError. Thread-safe.

    A metric is served from its first call on: a role serves its own metrics, not zeros for those of other roles.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        disable_created_metrics()  # created-times repeat the time of the scrape, and double the series
        self.registry = registry if registry is not None else CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._collectors: dict[Metric, Counter | Gauge | Histogram] = {}
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

    def page(self) -> str:
        """All metrics as text, as ``GET /metrics`` answers."""
        return generate_latest(self.registry).decode()

    def serve(
        self, port: int = 0, host: str = "127.0.0.1", pages: Mapping[str, Page] | None = None
    ) -> tuple[MetricsServer, int]:
        """Answer ``GET /metrics``, and ``pages`` by path, from daemon threads. Returns the server and its port.

        Port 0 takes a free one. Metrics carry no secrets but name rewards and workers: listen beyond loopback only behind
        a network policy.
        """
        try:
            server = make_server(
                host, port, _answering(make_wsgi_app(self.registry), pages or {}), _server(host), _SilentHandler
            )
        except (OSError, OverflowError, UnicodeError) as error:  # the last two: no port, no host name
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                fix = "stop what listens there, or choose another port (0 takes a free one)"
            else:
                fix = "choose an address of this machine and a port you may open (0 takes a free one)"
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"cannot serve metrics on {host}:{port} ({reason}); {fix}.") from error
        thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
        thread.start()
        return MetricsServer(server, thread), server.server_port

    def _series(self, verb: str, metric: object, labels: Mapping[str, str]) -> Counter | Gauge | Histogram:
        declared = check_call(verb, metric, labels)
        collector = self._collectors.get(declared) or self._first_call(declared)
        if not labels:
            return collector
        return collector.labels(**{label: self._bounded(label, value) for label, value in labels.items()})

    def _first_call(self, declared: Metric) -> Counter | Gauge | Histogram:
        if declared not in ALL:
            raise ValueError(f"{declared.name} is not in drover.common.metrics.ALL; declare it in common/metrics.py.")
        with self._lock:
            if declared not in self._collectors:
                self._collectors[declared] = _collector(declared, self.registry)
            return self._collectors[declared]

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


# ------------------------------------------------------------------------------------------ pages as text

_SERIES = re.compile(
    r"([a-zA-Z_:][\w:]*)"  # its name,
    r"(?:\{(.*)\})?"  # labels,
    r" +((?:[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?Inf|NaN)"  # value,
    r"(?: +-?\d+)?) *"  # and time
)


def fetch(address: str, path: str, *, timeout_s: float) -> str:
    """The page that a drover process serves at HOST:PORT, fetched without a proxy; "" where there is none.

    Another program may have taken the port meanwhile, so the answer can be anything.
    """
    ends_s = time.monotonic() + timeout_s
    try:
        connection = HTTPConnection(address, timeout=timeout_s)  # it knows of no proxies, and follows no redirections
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = bytearray()
            while part := answer.read1(1 << 16):
                body += part
                if time.monotonic() > ends_s or len(body) > MOST_PAGE_BYTES:
                    raise TimeoutError("the answer does not end")
            return body.decode() if answer.status == 200 and not answer.length else ""
        finally:
            connection.close()
    except (OSError, HTTPException, ValueError) as error:
        log.info("no page from %s: %s", address, error)
        return ""


def merged(pages: Iterable[tuple[Mapping[str, str], str]]) -> str:
    """Merge the pages of several processes: each series gets the labels of its page, except those that it has itself.

    A page that holds no metrics is left out: another program has taken its port.
    """
    families: dict[str, tuple[dict[str, str], list[str]]] = {}  # name -> HELP and TYPE, series; kept together
    for labels, page in pages:
        lines = page.split(
            "\n"
        )  # not splitlines: a label may hold other characters that it takes for the end of a line
        if not all(_is_metrics(line) for line in lines):
            log.info("no metrics but another program's page for %s", labels)
            continue
        series: list[str] = []
        for line in lines:
            if line.startswith(("# HELP ", "# TYPE ")):
                headings, series = families.setdefault(line.split(" ", 3)[2], ({}, []))
                headings.setdefault(line[:6], line)
            elif line and not line.startswith("#"):
                series.append(_labelled(line, labels))
    return "".join(f"{line}\n" for headings, rows in families.values() for line in (*headings.values(), *rows))


def read(page: str) -> list[tuple[str, dict[str, str], float]]:
    """(name, labels, value) of every series of a page."""
    return [
        (sample.name, dict(sample.labels), sample.value)
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    ]


def _is_metrics(line: str) -> bool:
    return not line or line.startswith("#") or _SERIES.fullmatch(line) is not None


def _labelled(line: str, labels: Mapping[str, str]) -> str:
    match = _SERIES.fullmatch(line)
    assert match is not None, line
    name, own, value = match.groups()
    # Inside a quoted value a quote is escaped, so `,role="` can only begin a label.
    added = [f'{key}="{_escaped(said)}"' for key, said in labels.items() if f',{key}="' not in f",{own or ''}"]
    both = ",".join([*added, *([own] if own else [])])
    return f"{name}{{{both}}} {value}" if both else f"{name} {value}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


# ------------------------------------------------------------------------------------------------- serving


class _SilentHandler(WSGIRequestHandler):
    """Logs no request: a scrape every few seconds is not worth a line."""

    def log_message(self, format: str, *args: Any) -> None: ...


class _Threads(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True


class _Threads6(_Threads):
    address_family = socket.AF_INET6


def _server(host: str) -> type[_Threads]:
    return _Threads6 if ":" in host else _Threads


def _answering(metrics: Callable[..., Any], pages: Mapping[str, Page]) -> Callable[..., Any]:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        page = pages.get(environ["PATH_INFO"])
        if page is None:
            return metrics(environ, start_response)
        kind, body = page()
        start_response("200 OK", [("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [body]

    return app


def _collector(metric: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    # prometheus_client adds the `_total` of a counter itself.
    name = metric.name.removesuffix("_total")
    if metric.kind is Kind.HISTOGRAM:
        return Histogram(name, metric.help, metric.labels, unit=metric.unit, buckets=metric.buckets, registry=registry)
    kind = Counter if metric.kind is Kind.COUNTER else Gauge
    return kind(name, metric.help, metric.labels, unit=metric.unit, registry=registry)
