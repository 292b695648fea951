"""Makes the pages by which Prometheus finds the metrics of a run: the list of addresses, and all metrics on one page.

The driver serves both on its one port. ``/targets`` is for a Prometheus that reaches the nodes (``http_sd_configs``);
``/metrics/all`` is for one that reaches the driver only, as on Kubernetes, where several workers share a pod and have no
fixed ports. This module starts no server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from drover.common.exporter import fetch, merged
from drover.common.metrics import BUILD_INFO

FETCH_S = 3.0  # well within Prometheus' own ten
FETCHERS = 32  # pages fetched at once


@dataclass(frozen=True, slots=True)
class MetricsEndpoint:
    """The metrics endpoint of one process of the run: its role, its address (HOST:PORT), and its reserved CPUs and GPUs."""

    role: str  # of `drover.common.metrics.LABEL_VALUES`
    address: str
    cpus: float = 0.0
    gpus: float = 0.0


def labels(run: str, worker: str, endpoint: MetricsEndpoint) -> dict[str, str]:
    """Return the Prometheus labels of every series of that process."""
    return {"run": run, "role": endpoint.role, "worker": worker}


def groups(run: str, endpoints: Mapping[str, MetricsEndpoint]) -> list[dict[str, object]]:
    """Return the list that Prometheus' HTTP and file discovery read: an element for each worker."""
    return [
        {"targets": [endpoint.address], "labels": labels(run, worker, endpoint)}
        for worker, endpoint in sorted(endpoints.items())
    ]


def targets_page(run: str, endpoints: Mapping[str, MetricsEndpoint]) -> bytes:
    """Return the page ``/targets``: `groups` as JSON."""
    return (json.dumps(groups(run, endpoints), indent=2) + "\n").encode()


def everything(run: str, endpoints: Mapping[str, MetricsEndpoint], pages: Mapping[str, str]) -> bytes:
    """Return the page ``/metrics/all``: the metrics of all workers. ``pages`` (by worker) are used, the rest is fetched.

    A worker that does not answer is left out, so its series end, as those of a target that is down.
    """
    absent = [worker for worker in endpoints if worker not in pages]
    with ThreadPoolExecutor(FETCHERS) as threads:
        fetched = dict(zip(absent, threads.map(lambda worker: _fetch(endpoints[worker].address), absent), strict=True))
    found = {**fetched, **pages}
    return merged(
        (labels(run, worker, endpoint), page)
        for worker, endpoint in sorted(endpoints.items())
        if (page := found[worker])
    ).encode()


def _fetch(address: str) -> str:
    """Fetch a worker's page of metrics; "" where none answers, or where another program has the port by now."""
    page = fetch(address, "/metrics", timeout_s=FETCH_S)
    return page if BUILD_INFO.name in page else ""
