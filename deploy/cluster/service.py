"""Runs the roles of a run as processes on Ray, on a cluster or on this machine. Ray only places and restarts processes.

Messages go through Redis, weights through Ray's object store, gradients through torch.distributed. The driver sees
reports and held-out pictures, never a training sample.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from functools import partial
from pathlib import Path

from drover.common.files import write_whole
from drover.common.transport import keys
from drover.common.transport.redis_broker import RedisBroker
from drover.common.types import Report
from drover.common.weights.object_store import start_directory
from drover.deploy.cluster import placing
from drover.deploy.cluster.connection import Connection, redis_url
from drover.deploy.cluster.driver import Driver, backlogs
from drover.deploy.cluster.learner_group import LearnerGroup
from drover.deploy.cluster.monitor import Listen, Monitor
from drover.deploy.cluster.pools import WorkerPools
from drover.deploy.cluster.ray_session import cluster_address, ray_session
from drover.deploy.cluster.scaling import Scaling, bounds
from drover.deploy.config import RunConfig
from drover.deploy.roles import Streams
from drover.deploy.run_folder import run_log
from drover.deploy.run_folder.results import RunFolder
from drover.deploy.run_folder.watch import View, Watcher

FORGET_S = 5.0  # how long deleting the run's keys waits for a Redis that does not answer


def train(
    config: RunConfig,
    folder: RunFolder,
    view: View,
    stopping: Callable[[], bool],
    *,
    run: str,
    autoscale: Sequence[str] = (),
    metrics: Listen,
) -> Watcher:
    """Run the service to the end, or until ``stopping()`` is True. Always stops the processes that it started.

    ``autoscale``: see `drover.deploy.cluster.scaling.bounds`.
    """
    cluster = cluster_address()
    if not cluster:
        # To be set before Ray is imported. Despite the name, "0" makes our own Ray listen on loopback only on every system.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    with ExitStack() as stack:  # left in reverse order
        url = stack.enter_context(redis_url())
        name = stack.enter_context(own_name(run, url, folder.path))
        connection = Connection(name, url, metrics_host=metrics.host, blobs_s=config.blobs_s)
        broker = connection.open()
        stack.callback(broker.close)
        streams = Streams(broker, config)
        watcher = Watcher(streams.open(broker.keys.reports, keys.WATCHER), broker.blobs(), folder, view)
        monitor = stack.enter_context(Monitor(broker, streams, folder, listen=metrics, run=run))

        def announce(kind: type[BaseException] | None, *_: object) -> None:
            failed = kind is not None and kind is not KeyboardInterrupt
            monitor.announce("failed" if failed else watcher.ended or "stopped")

        def tell(kind: str, text: str) -> None:
            watcher.tell(Report(kind=kind, at_s=0.0, version=-1, scalars={}, text=text))

        broker.tell_outages(partial(tell, "event"))
        stack.push(announce)
        if not cluster:
            placing.plan(config, placing.this_machine(config), alone=True)  # refuse before a Ray is started
        tell("phase", "starting Ray")
        stack.enter_context(redirect_stdout(run_log.Words()))  # Ray prints failures of workers
        stack.enter_context(ray_session(cluster, config))
        wanted, gpus = placing.plan(config, _nodes(), alone=not cluster)
        bounded = bounds(autoscale, [pool.name for pool in wanted])
        directory = start_directory(connection.directory)  # ends with this handle
        tell("phase", "starting actors, reward servers and learner")
        on_event = partial(tell, "event")
        pools = WorkerPools(config, connection, wanted, claim_cpus=bool(cluster), on_event=on_event)
        learner = LearnerGroup(config, connection, folder.path, gpus=gpus)
        stack.callback(pools.stop)
        stack.callback(learner.stop)
        stack.push(announce)  # again, to run before workers and Ray are stopped, which gives readers time
        pools.start()
        _await_environments(pools, tell, stopping)
        learner.start()
        scaling = Scaling(folder.path, bounded)
        stack.callback(scaling.close)
        driver = Driver(
            config, pools, learner, watcher, monitor, scaling, backlogs(streams, broker, wanted), on_event=on_event
        )
        driver.run(stopping, lambda: streams.open(broker.keys.control).put(_stop_order()))
        del directory
        return watcher


@contextmanager
def own_name(run: str, redis_url: str, folder: Path) -> Iterator[str]:
    """Give the name of this start of the run in Redis and Ray: RUN.TOKEN, which differs for equal names in other folders.

    The keys of the name are deleted at the end. A killed driver leaves them, and leaves the name in a file of the run
    folder: the next start of the run reads the file and deletes those keys first.
    """
    note = folder / "redis_name.txt"
    left = note.read_text(errors="replace") if note.exists() else ""
    if re.fullmatch(rf"{re.escape(run)}\.[0-9a-f]{{8}}", left):
        _forget(left, redis_url)
    name = f"{run}.{secrets.token_hex(4)}"
    write_whole(note, name.encode())
    try:
        yield name
    finally:
        _forget(name, redis_url)
        note.unlink(missing_ok=True)


def _forget(name: str, redis_url: str) -> None:
    broker = RedisBroker(redis_url, name, patience_s=FORGET_S)
    broker.forget()
    broker.close()


def _await_environments(pools: WorkerPools, tell: Callable[[str, str], None], stopping: Callable[[], bool]) -> None:
    """Wait until the rewards' environments are built, which takes minutes: the learner would take the silence for a stall."""
    told: list[str] = []
    while waiting := pools.preparing():
        if stopping():
            raise KeyboardInterrupt
        if waiting != told:
            tell("phase", f"building the environments of {', '.join(waiting)}; the first time, this takes minutes")
            told = waiting
        time.sleep(0.5)
        pools.look()


def _nodes() -> list[dict[str, float]]:
    """Return the total resources of each living node of the Ray."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _stop_order() -> Report:
    return Report(kind="stop", at_s=0.0, version=-1, scalars={})
