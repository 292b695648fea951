"""How Prometheus finds every role of a run: a list to scrape, and one page that has them all. Starts nothing.

The driver answers both on its one port. ``/targets`` is for a Prometheus that reaches the nodes (``http_sd_configs``);
``/metrics/all`` for one that reaches the driver alone, as on Kubernetes, where several workers share a pod and none has
a port that could be named.
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
class Endpoint:
    """One process of the run: what it does, where its metrics are (HOST:PORT), and what is set aside for it."""

    role: str  # of `drover.common.metrics.LABEL_VALUES`
    address: str
    cpus: float = 0.0
    gpus: float = 0.0


def labels(run: str, worker: str, endpoint: Endpoint) -> dict[str, str]:
    """What every series of that process is told apart by."""
    return {"run": run, "role": endpoint.role, "worker": worker}


def groups(run: str, endpoints: Mapping[str, Endpoint]) -> list[dict[str, object]]:
    """The form of Prometheus' HTTP and file discovery: an element for each worker."""
    return [
        {"targets": [endpoint.address], "labels": labels(run, worker, endpoint)}
        for worker, endpoint in sorted(endpoints.items())
    ]


def targets_page(run: str, endpoints: Mapping[str, Endpoint]) -> bytes:
    """What ``/targets`` answers."""
    return (json.dumps(groups(run, endpoints), indent=2) + "\n").encode()


def everything(run: str, endpoints: Mapping[str, Endpoint], pages: Mapping[str, str]) -> bytes:
    """What ``/metrics/all`` answers: ``pages`` by worker, and those of all other workers, fetched now.

    One that does not answer is left out: its series end there, as those of a target that is down.
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
    """A worker's page of metrics; "" where there is none, or where the port is another program's by now."""
    page = fetch(address, "/metrics", timeout_s=FETCH_S)
    return page if BUILD_INFO.name in page else ""
