"""The service on Ray: a local cluster started by us, or the one we run under. Ray places and restarts processes, no more.

Every role is a process of its own. Messages go through Redis, weights through Ray's object store, gradients through
torch.distributed; the driver sees reports and the held-out pictures, never a training sample.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from common import log as logs
from common.errors import ConfigError, DroverError
from common.protocols import Meter
from common.tensors import DTYPES
from common.transport import keys
from common.transport.broker import Broker
from common.transport.connection import connect
from common.transport.embedded import EmbeddedRedis
from common.transport.redis_broker import RedisBroker
from common.types import Report
from common.weights.object_store import ObjectStorePublisher, ObjectStoreSubscriber, find_directory, start_directory
from deploy.config import RunConfig
from deploy.progress import Progress
from deploy.results import RunFolder
from deploy.roles import Streams, build_actor, build_learner, build_reward_server, use_threads
from deploy.watch import Watcher

REDIS_URL = "DROVER_REDIS_URL"
LEARNER_RESTARTS = 3  # times a dead learner group is started again from its newest checkpoint
NAMESPACE = "drover"  # names inside it carry the run's
STOP_S = 15.0  # what roles get to finish what they hold
LOOK_S = 2.0  # how often the driver looks at its workers
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Connection:
    """How a process joins the run. The URL holds a password: it is never shown."""

    run: str
    redis_url: str = field(repr=False)

    @property
    def directory(self) -> str:
        """Name of the actor that holds the weights' references."""
        return f"drover-{self.run}-weights"

    def open(self) -> RedisBroker:
        return RedisBroker(self.redis_url, self.run)


@dataclass(frozen=True, slots=True)
class Place:
    """Which worker a process is: its role, its reward if it has one, its number, and what it may use."""

    role: str  # "actor" or "reward"
    name: str
    reward: str
    threads: int
    gpus: float


@ray.remote(max_restarts=-1, max_task_retries=-1, max_concurrency=2)
class Worker:
    """The process of an actor or of a reward server. `run` blocks; the other calls answer beside it.

    When the process dies, Ray starts another one and calls `run` again; what the dead one held is claimed by whoever
    is first once its lease ends.
    """

    def __init__(self, place: Place, config: RunConfig, connection: Connection) -> None:
        logs.configure(place.name, connection.run)
        use_threads(place.threads)
        meter, self._port = _serve_metrics()
        device = "cuda" if place.gpus else "cpu"
        self._broker, self._stop = connection.open(), threading.Event()
        if place.role == "actor":
            weights = ObjectStoreSubscriber(find_directory(connection.directory))
            self._worker: Any = build_actor(config, self._broker, weights, meter, name=place.name, device=device)
        else:
            self._worker = build_reward_server(
                config, place.reward, self._broker, meter, name=place.name, device=device
            )

    def run(self) -> None:
        """Work until `stop`."""
        self._worker.run(self._stop.is_set)
        self._broker.close()

    def stop(self) -> None:
        """Finish what is held, hand back the rest, return from `run`."""
        self._stop.set()

    def describe(self) -> dict[str, Any]:
        """{"pid", "metrics": "HOST:PORT", "spent": seconds by part}."""
        return {"pid": os.getpid(), "metrics": f"127.0.0.1:{self._port}", "spent": self._worker.spent}


def train(
    config: RunConfig, folder: RunFolder, view: Progress, stopping: Callable[[], bool], *, run: str
) -> Watcher:
    """Run the whole service to the end, or until ``stopping``. Everything that was started is stopped, however it ends."""
    with ExitStack() as stack:  # left in reverse order
        connection = Connection(run, stack.enter_context(_redis()))
        broker = connection.open()
        stack.callback(broker.close)
        stack.callback(_forget_run, broker)
        stack.enter_context(_ray(config, run))
        streams = Streams(broker, config)
        watcher = Watcher(streams.open(broker.keys.reports, keys.WATCHER), broker.blobs(), folder, view)
        service = Service(config, connection, folder, watcher)
        stack.callback(service.stop)
        service.start()
        service.drive(stopping, stop=lambda: streams.open(broker.keys.control).put(_stop_order()))
        return watcher


class Service:
    """The pools and the learner of one run, seen from the driver."""

    def __init__(self, config: RunConfig, connection: Connection, folder: RunFolder, watcher: Watcher) -> None:
        self._config, self._connection, self._folder, self._watcher = config, connection, folder, watcher
        self._directory = start_directory(connection.directory)
        self._workers: dict[str, Any] = {}
        self._running: dict[Any, str] = {}  # future of `run` -> worker's name
        self._pids: dict[str, int] = {}
        self._asked: dict[Any, str] = {}  # future of `describe` -> worker's name
        self._spent: dict[str, dict[str, float]] = {}
        self._targets: dict[str, str] = {}  # worker -> HOST:PORT of its metrics
        self._looked = 0.0
        self._learner = threading.Thread(target=self._fit, name="learner", daemon=True)
        self._failure: BaseException | None = None
        self._started = time.monotonic()

    def start(self) -> None:
        self._phase("starting the service")
        self._learner.start()
        for place in places(self._config):
            cpus = place.threads if place.role == "actor" else 0.1
            options = {"num_cpus": cpus, "num_gpus": place.gpus, "name": f"drover-{self._connection.run}-{place.name}"}
            worker = Worker.options(**options).remote(place, self._config, self._connection)
            self._workers[place.name] = worker
            self._running[worker.run.remote()] = place.name

    def drive(self, stopping: Callable[[], bool], *, stop: Callable[[], None]) -> None:
        """Show progress until the learner is done. Raises what made the run fail."""
        asked = False
        while self._learner.is_alive():
            self._watcher.poll(0.3)
            if stopping() and not asked:
                asked = True
                self._phase("stopping: finishing the iteration and writing a checkpoint")
                stop()
            if time.monotonic() - self._looked > LOOK_S:
                self._look()
        self._watcher.poll(0.0)
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Ask every worker to finish, then end it."""
        for worker in self._workers.values():
            worker.stop.remote()
        ray.wait(list(self._running), num_returns=len(self._running), timeout=STOP_S)
        for worker in self._workers.values():
            ray.kill(worker)

    def _look(self) -> None:
        """Notice workers that failed for good or were replaced, and collect where their time went."""
        self._looked = time.monotonic()
        ended, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        for future in ended:
            name = self._running.pop(future)
            try:
                ray.get(future)
            except ray.exceptions.RayError as error:
                raise DroverError(f"{name} failed: {_cause(error)}") from error
        answered, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0) if self._asked else ([], [])
        for future in answered:
            self._note(self._asked.pop(future), future)
        waiting = set(self._asked.values())
        for name, worker in self._workers.items():
            if name not in waiting:
                self._asked[worker.describe.remote()] = name
        self._watcher.extra = self._pool_scalars()

    def _note(self, name: str, future: Any) -> None:
        try:
            found = ray.get(future)
        except ray.exceptions.RayError:  # it is being restarted; the next look finds its successor
            return
        if self._pids.get(name, found["pid"]) != found["pid"]:
            self._tell("event", f"{name} died and was replaced")
        self._pids[name] = found["pid"]
        self._spent[name] = found["spent"]
        if self._targets.get(name) != found["metrics"]:
            self._targets[name] = found["metrics"]
            self._folder.note_metrics(self._targets)

    def _pool_scalars(self) -> dict[str, float]:
        scalars: dict[str, float] = {}
        for place in places(self._config):
            pool = "pool/rollout" if place.role == "actor" else f"pool/reward/{place.reward}"
            scalars[pool] = scalars.get(pool, 0.0) + (place.name in self._pids)
            for part, seconds in self._spent.get(place.name, {}).items():
                key = f"account/{place.role}/{part}"
                scalars[key] = scalars.get(key, 0.0) + seconds
        return scalars

    def _fit(self) -> None:
        """Ray Train places the learner's ranks, brings up their process group, and starts them again when one dies."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        gpu = _has_gpu()
        trainer = TorchTrainer(
            _learner_rank,
            train_loop_config={
                "config": self._config,
                "connection": self._connection,
                "folder": str(self._folder.path.resolve()),
            },
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=self._config.pools.learner_ranks,
                use_gpu=gpu,
                resources_per_worker={"CPU": self._config.pools.learner_threads, **({"GPU": 1} if gpu else {})},
            ),
            run_config=RunConfig(
                name="ray_train",
                storage_path=str(self._folder.path.resolve()),
                failure_config=FailureConfig(max_failures=LEARNER_RESTARTS),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:  # handed to the driver's thread, which raises it
            self._failure = DroverError(f"the learner failed: {_cause(error)}")
            self._failure.__cause__ = error

    def _phase(self, text: str) -> None:
        self._tell("phase", text)

    def _tell(self, kind: str, text: str) -> None:
        at_s = time.monotonic() - self._started
        self._watcher.tell(Report(kind=kind, at_s=at_s, version=-1, scalars={}, text=text))


def places(config: RunConfig) -> list[Place]:
    """Every worker of the run, rewards first: they have the least to load."""
    pools, gpus = config.pools, 1.0 if _has_gpu() else 0.0
    servers = [
        Place("reward", f"{reward.name}-{i}", reward.name, 1, 0.0)
        for reward in config.rewards
        for i in range(pools.reward_servers)
    ]
    return servers + [Place("actor", f"actor-{i}", "", pools.actor_threads, gpus) for i in range(pools.actors)]


def _learner_rank(given: dict[str, Any]) -> None:
    """What every rank of the worker group runs."""
    import torch
    import torch.distributed as dist

    config, connection = given["config"], given["connection"]
    rank = dist.get_rank()
    logs.configure(f"learner-{rank}", connection.run)
    use_threads(config.pools.learner_threads)
    meter, _ = _serve_metrics()
    publisher = ObjectStorePublisher(find_directory(connection.directory), DTYPES[config.weights]) if rank == 0 else None
    broker = connection.open()
    device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    learner = build_learner(config, broker, publisher, meter, folder=Path(given["folder"]), device=device)
    learner.run()
    broker.close()


@contextmanager
def _redis() -> Iterator[str]:
    """The URL of the Redis the environment names, else of an embedded one that lives as long as the block."""
    url = os.environ.get(REDIS_URL)
    if url:
        connect(url).close()  # fails here, with the remedy, rather than in every role
        yield url
        return
    with EmbeddedRedis() as server:
        yield server.url


@contextmanager
def _ray(config: RunConfig, run: str) -> Iterator[None]:
    """Join the Ray we run under, else start one for this run alone."""
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")  # it would ask the dashboard, which is off here
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    joined = "RAY_ADDRESS" in os.environ
    needed = _cpus_needed(config)
    if joined:
        ray.init(address=os.environ["RAY_ADDRESS"], namespace=NAMESPACE, log_to_driver=False)
        _check_resources(needed)
    else:
        # Logical CPUs: the roles of a laptop share its cores, and Ray must not refuse to place them.
        ray.init(
            address="local",
            namespace=NAMESPACE,
            num_cpus=max(needed, os.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
        )
    try:
        yield
    finally:
        ray.shutdown()


def _cpus_needed(config: RunConfig) -> int:
    pools = config.pools
    return pools.learner_ranks * pools.learner_threads + pools.actors * pools.actor_threads + len(places(config)) + 1


def _check_resources(cpus: int) -> None:
    have = ray.cluster_resources()
    if have.get("CPU", 0) < cpus:
        raise ConfigError(
            f"this run asks Ray for {cpus} CPUs, the cluster has {have.get('CPU', 0):g}; "
            "lower --actors or --learner-ranks, or add nodes"
        )


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _serve_metrics() -> tuple[Meter, int]:
    from common.exporter import PrometheusMeter

    meter = PrometheusMeter()
    _, port = meter.serve()
    return meter, port


def _stop_order() -> Report:
    return Report(kind="stop", at_s=0.0, version=-1, scalars={})


def _forget_run(broker: Broker) -> None:
    """Leave nothing of a run that has ended in a Redis that lives on."""
    broker.forget()


def _cause(error: BaseException) -> str:
    """The innermost reason in words, without Ray's wrapping."""
    while True:
        inner = getattr(error, "cause", None) or error.__cause__
        failures = getattr(error, "worker_failures", None)
        if failures:
            inner = next(iter(failures.values()))
        if not isinstance(inner, BaseException) or inner is error:
            return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        error = inner
