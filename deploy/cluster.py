"""The service on Ray: a local cluster started by us, or the one we run under. Ray places and restarts processes, no more.

Every role is a process of its own. Messages go through Redis, weights through Ray's object store, gradients through
torch.distributed; the driver sees reports and held-out pictures, never a training sample.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import ceil

from common.errors import ConfigError, DroverError
from common.transport import keys
from common.types import Report
from common.weights.object_store import start_directory
from deploy.config import RunConfig
from deploy.connection import Connection, redis_url
from deploy.environments import sweep
from deploy.learner_group import LearnerGroup
from deploy.pools import Place, Pools, places
from deploy.progress import Progress
from deploy.results import RunFolder
from deploy.roles import Streams
from deploy.watch import Watcher

RAY_ADDRESS = "RAY_ADDRESS"
NAMESPACE = "drover"  # names inside it carry the run's
ANSWER_S = 5.0  # what a cluster gets to accept a connection
LOOK_S = 2.0  # how often the driver looks at its workers


def train(config: RunConfig, folder: RunFolder, view: Progress, stopping: Callable[[], bool], *, run: str) -> Watcher:
    """Run the service to the end, or until ``stopping``. What was started is stopped, however it ends."""
    with ExitStack() as stack:  # left in reverse order
        # Folders of the same name may be run at once, on one Redis and one Ray: the token keeps them apart.
        connection = Connection(f"{run}.{secrets.token_hex(4)}", stack.enter_context(redis_url()))
        broker = connection.open()
        stack.callback(broker.close)
        stack.callback(broker.forget)
        streams = Streams(broker, config)
        watcher = Watcher(streams.open(broker.keys.reports, keys.WATCHER), broker.blobs(), folder, view)

        def tell(kind: str, text: str) -> None:
            watcher.tell(Report(kind=kind, at_s=0.0, version=-1, scalars={}, text=text))

        tell("phase", "starting Ray")
        gpus = _gpus_each(config)
        wanted = places(config, gpus=gpus)
        learner = LearnerGroup(config, connection, folder.path, gpus=gpus)
        stack.enter_context(_ray(config, wanted, gpus))
        directory = start_directory(connection.directory)  # lives as long as this handle
        tell("phase", "starting actors, reward servers and learner")
        pools = Pools(config, connection, wanted, on_event=lambda text: tell("event", text))
        stack.callback(pools.stop)
        stack.callback(learner.stop)
        pools.start()
        _await_environments(pools, tell, stopping)
        learner.start()
        _drive(pools, learner, watcher, folder, stopping, lambda: streams.open(broker.keys.control).put(_stop_order()))
        del directory
        return watcher


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


def _drive(
    pools: Pools,
    learner: LearnerGroup,
    watcher: Watcher,
    folder: RunFolder,
    stopping: Callable[[], bool],
    stop: Callable[[], None],
) -> None:
    """Show progress until the learner is done. Raises what made the run fail."""
    asked, looked = False, 0.0
    targets: dict[str, str] = {}
    while learner.running:
        watcher.poll(0.3)
        if watcher.failure is not None:
            raise DroverError("; ".join([watcher.failure, *pools.troubles()]))
        if stopping() and not asked:
            asked = True
            stop()
        if time.monotonic() - looked > LOOK_S:
            looked = time.monotonic()
            pools.look()
            watcher.extra = pools.scalars()
            found = pools.targets() | watcher.ranks
            if targets != found:
                targets = found
                folder.note_metrics(targets)
    watcher.poll(0.0)


@contextmanager
def _ray(config: RunConfig, wanted: list[Place], gpus: float) -> Iterator[None]:
    """Join the Ray we run under, else start one for this run alone."""
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")  # it would ask the dashboard, which is off here
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RUNTIME_ENV_RETRY_TIMES", "1")  # of a reward's; pip tries downloads again by itself
    import ray

    asks_to_stop = signal.getsignal(signal.SIGTERM)
    pools = config.pools
    own_session = ""
    cpus = ceil(pools.learner_ranks * pools.learner_threads + sum(place.cpus for place in wanted))
    if RAY_ADDRESS in os.environ:
        _check_answers(os.environ[RAY_ADDRESS])
        ray.init(address=os.environ[RAY_ADDRESS], namespace=NAMESPACE, log_to_driver=False, logging_level="error")
        _check_resources({"CPU": cpus, "GPU": pools.learner_ranks * gpus + sum(place.gpus for place in wanted)})
    else:
        # Logical CPUs: the roles of a laptop share its cores, and Ray must not refuse to place them.
        context = ray.init(
            address="local",
            namespace=NAMESPACE,
            num_cpus=max(cpus, os.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
        )
        own_session = context.address_info["session_dir"]
    signal.signal(signal.SIGTERM, asks_to_stop)  # Ray's own, which it sets above, exits without a checkpoint
    try:
        yield
    finally:
        ray.shutdown()
        if own_session:
            sweep(own_session)


def _check_answers(address: str) -> None:
    """Raises `ConfigError` when nobody listens at HOST:PORT, which Ray itself would try for many minutes."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit() or "/" in host:
        return  # "auto" and the like are Ray's to resolve
    try:
        socket.create_connection((host, int(port)), ANSWER_S).close()
    except OSError as error:
        raise ConfigError(
            f"no Ray answers at {address} ({error.strerror or error}); correct RAY_ADDRESS, or unset it to start one here"
        ) from error


def _check_resources(wanted: dict[str, float]) -> None:
    """Raises `ConfigError` when the cluster can never place the run."""
    import ray

    have = ray.cluster_resources()
    for name, count in wanted.items():
        if have.get(name, 0) < count:
            raise ConfigError(
                f"this run asks Ray for {count:g} {name}s, the cluster has {have.get(name, 0):g}; "
                "lower --actors, --actor-threads or --learner-ranks, or add nodes"
            )


def _gpus_each(config: RunConfig) -> float:
    """GPUs of every actor and learner rank: a whole one on a cluster, equal shares where one machine has too few."""
    import torch

    count, sharers = torch.cuda.device_count(), config.pools.actors + config.pools.learner_ranks
    if count == 0 or RAY_ADDRESS in os.environ:
        return float(count > 0)
    if count < sharers and config.pools.learner_ranks > 1:
        raise ConfigError(
            f"{config.pools.learner_ranks} learner ranks cannot share GPUs with {config.pools.actors} actors: this machine "
            f"has {count}; pass --learner-ranks 1"
        )
    return min(1.0, count / sharers)


def _stop_order() -> Report:
    return Report(kind="stop", at_s=0.0, version=-1, scalars={})
