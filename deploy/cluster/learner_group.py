"""Runs the learner's ranks as a Ray Train worker group: places them, joins them in a process group, restarts them."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drover.common import log as logs
from drover.common.errors import BlobMissing, DroverError
from drover.common.tensors import dtype_named
from drover.common.transport.broker import Broker
from drover.common.types import Report
from drover.common.weights.object_store import ObjectStorePublisher, find_directory
from drover.deploy.cluster.connection import Connection, serve_metrics
from drover.deploy.cluster.discovery import MetricsEndpoint
from drover.deploy.cluster.own_log import own_log
from drover.deploy.cluster.pools import NODE_SHARE, cause
from drover.deploy.cluster.process_group import torch_config
from drover.deploy.config import RunConfig
from drover.deploy.roles import Streams, build_learner, use_threads
from drover.deploy.user_file import Portable

GROUP = "learner"  # the custom resource that marks the learner's nodes
RESTARTS = 3  # restarts of the group without a newer checkpoint between them
NOTICE = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon the death of a rank is seen
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",  # a rank that is silent for so long hangs, and is replaced
}


class LearnerGroup:
    """The learner's ranks, seen from the driver.

    Ray Train's ``fit`` blocks until the group is done, so it runs in a Ray task on the driver's node.
    """

    def __init__(self, config: RunConfig, connection: Connection, folder: Path, *, gpus: float) -> None:
        self._given = {
            "config": Portable(config),
            "connection": connection,
            "folder": str(folder.resolve()),
            "gpus": gpus,
        }
        self._cpus, self._gpus = float(config.pools.learner_threads), gpus
        self._end: Any = None

    def start(self) -> None:
        """Start the task that runs the group; returns at once."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._end = ray.remote(num_cpus=0, max_retries=RESTARTS, scheduling_strategy=here)(fit).remote(self._given)

    @property
    def running(self) -> bool:
        """Whether the group still learns. Raises `DroverError` when it failed beyond its restarts."""
        import ray

        if not ray.wait([self._end], timeout=0)[0]:
            return True
        try:
            ray.get(self._end)
        except ray.exceptions.RayError as error:
            raise DroverError(f"the learner failed: {cause(error)}") from error
        return False

    def endpoints(self, ranks: Mapping[str, str]) -> dict[str, MetricsEndpoint]:
        """Return rank -> its metrics endpoint. ``ranks``: rank -> HOST:PORT of its metrics."""
        return {name: MetricsEndpoint("learner", address, self._cpus, self._gpus) for name, address in ranks.items()}

    def stop(self) -> None:
        """Kill the ranks at once, unless they are done."""
        import ray

        if self._end is not None:
            ray.cancel(self._end, force=True)


def fit(given: dict[str, Any]) -> None:
    """Run the group to its end. It is restarted without limit, provided a newer checkpoint exists since the last failure."""
    from ray.train import TrainingFailedError

    for name, value in NOTICE.items():
        os.environ.setdefault(name, value)
    while True:
        before = _newest_checkpoint(given)
        try:
            _trainer(given).fit()
            return
        except TrainingFailedError:
            if _newest_checkpoint(given) == before:
                raise


def _newest_checkpoint(given: dict[str, Any]) -> str:
    """Return the name of the run's newest checkpoint; "" before the first."""
    found = (Path(given["folder"]) / "checkpoints").glob("update-*")
    return max((path.name for path in found if path.suffix != ".partial"), default="")


def _trainer(given: dict[str, Any]) -> Any:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    pools, gpus = given["config"].value.pools, given["gpus"]
    return TorchTrainer(
        learn,
        train_loop_config=given,
        torch_config=torch_config("nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=pools.learner_ranks,
            use_gpu=gpus > 0,
            resources_per_worker=rank_resources(pools.learner_threads, gpus, set(ray.cluster_resources())),
        ),
        run_config=RunConfig(
            name="ray_train",
            storage_path=given["folder"],
            failure_config=FailureConfig(max_failures=RESTARTS),
        ),
    )


def rank_resources(threads: int, gpus: float, offered: set[str]) -> dict[str, float]:
    """Return the resources that each rank requests from Ray, with the mark `learner` if the cluster has nodes with it."""
    asked: dict[str, float] = {"CPU": threads}
    if gpus:
        asked["GPU"] = gpus
    if GROUP in offered:
        asked[GROUP] = NODE_SHARE
    return asked


def learn(given: dict[str, Any]) -> None:
    """Run one rank of the learner, whose process group is already up."""
    import torch
    import torch.distributed as dist

    config: RunConfig = given["config"].value
    connection: Connection = given["connection"]
    rank = dist.get_rank()
    logs.configure(f"learner-{rank}", connection.run)
    use_threads(config.pools.learner_threads)
    meter, address = serve_metrics(connection.metrics_host)
    publisher = None
    if rank == 0:
        publisher = ObjectStorePublisher(find_directory(connection.directory), dtype_named(config.weights))
    device = f"cuda:{torch.cuda.current_device()}" if given["gpus"] else "cpu"
    broker = connection.open()
    _say(config, broker, "joined", f"learner-{rank} {address} {own_log()}")
    try:
        build_learner(config, broker, publisher, meter, folder=Path(given["folder"]), device=device).run()
    except BlobMissing:
        raise  # Redis lost samples under training: Ray Train restarts all ranks from the newest checkpoint
    except DroverError as error:
        # Reported before it is raised: so the driver ends the run at once, while Ray Train would restart the ranks.
        _say(config, broker, "traceback", traceback.format_exc())
        _say(config, broker, "failed", str(error))
        raise
    finally:
        broker.close()


def _say(config: RunConfig, broker: Broker, kind: str, text: str) -> None:
    report = Report(kind=kind, at_s=0.0, version=-1, scalars={}, text=text)
    Streams(broker, config).open(broker.keys.reports).put(report)
