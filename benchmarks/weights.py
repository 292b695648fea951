"""Measures the time from ``publish`` to loaded weights, by Ray's object store and in one process, against a memory copy.

    python -m benchmarks.weights [--quick] [--json] [--out FILE]

Publisher and subscriber are two Ray actors on this machine, each with one thread, and both hold float32 parameters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from benchmarks import measure
from benchmarks.measure import Spread
from drover.common.weights import flat
from drover.common.weights.memory import MemoryWeights
from drover.common.weights.object_store import (
    ObjectStorePublisher,
    ObjectStoreSubscriber,
    find_directory,
    start_directory,
)

SIZES_MB = (1.7, 13.0, 1700.0)  # the shapes UNet, adapters of Stable Diffusion 1.5, and the UNet of that in bfloat16
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYER_VALUES = 1 << 20  # as many as a large layer of Stable Diffusion has
MOST_LAYERS = 200
PARTS = ("pack", "checksum", "put", "pointer", "get", "verify", "copy")
CARRIERS = {"ray": "Ray object store", "memory": "one process"}
DIRECTORY = "benchmark-weights"


class Flat(nn.Module):
    """A module of float32 parameters that take ``nbytes`` when published as ``dtype``."""

    def __init__(self, nbytes: int, dtype: torch.dtype) -> None:
        super().__init__()
        values = nbytes // dtype.itemsize
        layers = min(MOST_LAYERS, max(16, values // LAYER_VALUES))
        self.layers = nn.ParameterList(torch.full((values // layers,), 0.5) for _ in range(layers))


class Stopwatch:
    """Measures the seconds spent inside functions of a module while they are wrapped."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def on(self, owner: Any, name: str, part: str) -> Iterator[None]:
        """Add the time of every call of ``owner.name`` to ``part`` during the block."""
        wrapped = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return wrapped(*args, **kwargs)
            finally:
                self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started

        setattr(owner, name, timed)
        try:
            yield
        finally:
            setattr(owner, name, wrapped)


def timed_publish(publish: Callable[[], None]) -> dict[str, float]:
    """Publish; return the seconds of its parts, and ``at``: its start on the clock that all processes of the machine share."""
    import ray

    watch, started = Stopwatch(), time.monotonic()
    with watch.on(flat, "pack", "pack"), watch.on(flat, "_checksum", "checksum"), watch.on(ray, "put", "put"):
        publish()
    total = time.monotonic() - started
    parts = {part: watch.seconds.get(part, 0.0) for part in ("pack", "checksum", "put")}
    parts["pointer"] = total - parts["pack"] - parts["put"]
    parts["pack"] -= parts["checksum"]
    return parts | {"at": started}


def timed_load(load: Callable[[], object]) -> dict[str, float]:
    """Load; return the seconds of its parts, and ``at``: its end on that clock."""
    watch, started = Stopwatch(), time.monotonic()
    with watch.on(flat, "load", "load"), watch.on(flat, "_checksum", "verify"):
        load()
    ended = time.monotonic()
    get = ended - started - watch.seconds["load"]
    return {
        "get": get,
        "verify": watch.seconds["verify"],
        "copy": watch.seconds["load"] - watch.seconds["verify"],
        "at": ended,
    }


# ------------------------------------------------------------------------------- the two ends, as Ray actors


class Publisher:
    def __init__(self, nbytes: int, dtype: torch.dtype) -> None:
        torch.set_num_threads(1)
        self._tensors = dict(Flat(nbytes, dtype).named_parameters())
        self._publisher = ObjectStorePublisher(find_directory(DIRECTORY), dtype)

    def publish(self, version: int) -> dict[str, float]:
        return timed_publish(lambda: self._publisher.publish(version, self._tensors, None))


class Subscriber:
    def __init__(self, nbytes: int, dtype: torch.dtype) -> None:
        torch.set_num_threads(1)
        self._module = Flat(nbytes, dtype)
        self._subscriber = ObjectStoreSubscriber(find_directory(DIRECTORY))

    def load(self, version: int, published: dict[str, float]) -> dict[str, float]:
        """Load the version; return the seconds of all parts. Ray starts this call when ``published`` is there."""
        loaded = timed_load(lambda: self._subscriber.load(version, self._module))
        return published | loaded | {"total": loaded["at"] - published["at"]}


def across_processes(nbytes: int, dtype: torch.dtype, repeats: int) -> dict[str, list[Any]]:
    """Measure through Ray's object store: the parts of each repeat, and the seconds of the memory copy beside it."""
    import ray

    directory = start_directory(DIRECTORY)
    ray.get(directory.latest.remote())
    publisher = ray.remote(num_cpus=0)(Publisher).remote(nbytes, dtype)
    subscriber = ray.remote(num_cpus=0)(Subscriber).remote(nbytes, dtype)
    versions = iter(range(1_000_000))

    def publish_and_load() -> dict[str, float]:
        version = next(versions)
        found: dict[str, float] = ray.get(subscriber.load.remote(version, publisher.publish.remote(version)))
        return found

    try:
        return measure.alternate(repeats, {"way": publish_and_load, "copy": copy_of(nbytes)}, warmups=3)
    finally:
        for actor in (publisher, subscriber, directory):
            ray.kill(actor)


def in_one_process(nbytes: int, dtype: torch.dtype, repeats: int) -> dict[str, list[Any]]:
    """Measure through `MemoryWeights` in one process, as `across_processes` does."""
    tensors, module = dict(Flat(nbytes, dtype).named_parameters()), Flat(nbytes, dtype)
    weights = MemoryWeights(dtype)
    versions = iter(range(1_000_000))

    def publish_and_load() -> dict[str, float]:
        version = next(versions)
        published = timed_publish(lambda: weights.publish(version, tensors, None))
        loaded = timed_load(lambda: weights.load(version, module))
        return published | loaded | {"total": loaded["at"] - published["at"]}

    return measure.alternate(repeats, {"way": publish_and_load, "copy": copy_of(nbytes)}, warmups=3)


def copy_of(nbytes: int) -> Callable[[], float]:
    """Return a function that measures the seconds of one copy by one thread, between memory that is already mapped."""
    source, target = torch.ones(nbytes, dtype=torch.uint8), torch.ones(nbytes, dtype=torch.uint8)

    def copy() -> float:
        started = time.perf_counter()
        target.copy_(source)
        return time.perf_counter() - started

    return copy


# --------------------------------------------------------------------------------------------------- main


def measured(carrier: str, dtype: str, nbytes: int, repeats: int) -> dict[str, Any]:
    run = across_processes if carrier == "ray" else in_one_process
    found = run(nbytes, DTYPES[dtype], repeats)
    totals = [way["total"] for way in found["way"]]
    return {
        "carrier": carrier,
        "dtype": dtype,
        "nbytes": nbytes,
        "total_s": Spread.of(totals).as_dict(),
        "copy_s": Spread.of(found["copy"]).as_dict(),
        "ratio": measure.ratio(totals, found["copy"]).as_dict(),
        "parts_s": {part: Spread.of([way[part] for way in found["way"]]).median for part in PARTS},
    }


def main() -> None:
    chosen = measure.options(__doc__.splitlines()[0] if __doc__ else "")
    facts = measure.machine()
    torch.set_num_threads(1)
    sizes = [int(size * 1e6) for size in (SIZES_MB[:2] if chosen.quick else SIZES_MB)]
    found = []
    with _ray(4 * max(sizes) + (200 << 20)):
        for nbytes in sizes:
            repeats = 3 if chosen.quick else 5 if nbytes > 1e9 else 15
            found += [measured(carrier, dtype, nbytes, repeats) for carrier in CARRIERS for dtype in DTYPES]
    measure.show(chosen, facts, {"weights": found}, [_total_table(found), _parts_table(found)])


@contextmanager
def _ray(store_bytes: int) -> Iterator[None]:
    """Run a Ray of our own on this machine during the block."""
    import ray

    ray.init(
        address="local",
        num_cpus=measure.cores(),
        object_store_memory=store_bytes,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    try:
        yield
    finally:
        ray.shutdown()


def _total_table(found: Sequence[dict[str, Any]]) -> Any:
    rows = [
        (
            f"{CARRIERS[one['carrier']]}, {one['dtype']}",
            f"{one['nbytes'] / 1e6:,.1f}",
            *(_spread(one[key], 1e3).text() for key in ("total_s", "copy_s")),
            _spread(one["ratio"]).text(2),
            f"{one['nbytes'] / 1e9 / one['total_s']['median']:.2f}",
        )
        for one in found
    ]
    columns = ("carrier", "MB", "publish to loaded, ms", "plain copy, ms", "ratio", "GB/s")
    return measure.table("Publish to loaded", columns, rows)


def _parts_table(found: Sequence[dict[str, Any]]) -> Any:
    rows = []
    for one in found:
        parts = [one["parts_s"][part] * 1e3 for part in PARTS]
        rest = one["total_s"]["median"] * 1e3 - sum(parts)
        name = f"{CARRIERS[one['carrier']]}, {one['dtype']}, {one['nbytes'] / 1e6:,.1f} MB"
        rows.append((name, *(measure.significant(part) for part in parts), measure.significant(max(rest, 0.0))))
    return measure.table("Where the time goes, ms (medians)", ("carrier", *PARTS, "hand-over"), rows)


def _spread(found: dict[str, float], scale: float = 1.0) -> Spread:
    return Spread(found["median"] * scale, found["min"] * scale, found["max"] * scale)


if __name__ == "__main__":
    main()
