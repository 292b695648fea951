"""The service on Ray: a local cluster started by us, or the one we run under. Ray places and restarts processes, no more.

Every role is a process of its own. Messages go through Redis, weights through Ray's object store, gradients through
torch.distributed; the driver sees reports and held-out pictures, never a training sample.
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
from drover.deploy.cluster.pools import Pools
from drover.deploy.cluster.ray_session import cluster_address, ray_session
from drover.deploy.cluster.scaling import Scaling, bounds
from drover.deploy.config import RunConfig
from drover.deploy.roles import Streams
from drover.deploy.run_folder import run_log
from drover.deploy.run_folder.results import RunFolder
from drover.deploy.run_folder.watch import View, Watcher

FORGET_S = 5.0  # what a Redis that is away gets to come back for the deleting of keys


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
    """Run the service to the end, or until ``stopping``. What was started is stopped, however it ends.

    ``autoscale``: see `drover.deploy.cluster.scaling.bounds`.
    """
    cluster = cluster_address()
    if not cluster:
        # Before anything imports Ray. Its name misleads: on every system "0" makes our own Ray listen on loopback alone.
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
            placing.plan(config, placing.this_machine(config), alone=True)  # refuses before a Ray is started for it
        tell("phase", "starting Ray")
        stack.enter_context(redirect_stdout(run_log.Words()))  # Ray prints what it tells of failures
        stack.enter_context(ray_session(cluster, config))
        wanted, gpus = placing.plan(config, _nodes(), alone=not cluster)
        bounded = bounds(autoscale, [pool.name for pool in wanted])
        directory = start_directory(connection.directory)  # lives as long as this handle
        tell("phase", "starting actors, reward servers and learner")
        on_event = partial(tell, "event")
        pools = Pools(config, connection, wanted, claim_cpus=bool(cluster), on_event=on_event)
        learner = LearnerGroup(config, connection, folder.path, gpus=gpus)
        stack.callback(pools.stop)
        stack.callback(learner.stop)
        stack.push(announce)  # again, and before workers and Ray are stopped: that takes the time that a reader needs
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
    """The run's name in Redis and Ray, this start's alone: a token keeps folders of one name apart that run at once.

    At the end its keys are deleted. Where a driver was killed, the note of its name is still in the folder: whoever goes
    on with the run deletes its keys first.
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


def _await_environments(pools: Pools, tell: Callable[[str, str], None], stopping: Callable[[], bool]) -> None:
    """Before the learner starts to wait for rewards: building takes minutes, which no one should take for silence."""
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
    """What each living node of the Ray has in all."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _stop_order() -> Report:
    return Report(kind="stop", at_s=0.0, version=-1, scalars={})
