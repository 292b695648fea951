"""The learner's ranks as a Ray Train worker group: placed, joined in a process group, started again when one dies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import log as logs
from common.errors import DroverError
from common.tensors import DTYPES
from common.transport.broker import Broker
from common.types import Report
from common.weights.object_store import ObjectStorePublisher, find_directory
from deploy.config import RunConfig
from deploy.connection import Connection, serve_metrics
from deploy.pools import cause
from deploy.roles import Streams, build_learner, use_threads

RESTARTS = 3  # times a dead group is started again, from its newest checkpoint


class LearnerGroup:
    """Ray Train's ``fit`` blocks until the group is done, so a Ray task on the driver's node waits for it."""

    def __init__(self, config: RunConfig, connection: Connection, folder: Path, *, gpus: float) -> None:
        self._given = {"config": config, "connection": connection, "folder": str(folder.resolve()), "gpus": gpus}
        self._end: Any = None

    def start(self) -> None:
        """Returns at once."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._end = ray.remote(num_cpus=0, max_retries=RESTARTS, scheduling_strategy=here)(fit).remote(self._given)

    @property
    def running(self) -> bool:
        """Raises `DroverError` when the group failed for good."""
        import ray

        if not ray.wait([self._end], timeout=0)[0]:
            return True
        try:
            ray.get(self._end)
        except ray.exceptions.RayError as error:
            raise DroverError(f"the learner failed: {cause(error)}") from error
        return False

    def stop(self) -> None:
        """End the ranks where they stand, unless they are done."""
        import ray

        if self._end is not None:
            ray.cancel(self._end, force=True)


def fit(given: dict[str, Any]) -> None:
    """Run the group to its end, starting it again when a rank dies."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    pools, gpus = given["config"].pools, given["gpus"]
    TorchTrainer(
        learn,
        train_loop_config=given,
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=pools.learner_ranks,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": pools.learner_threads, **({"GPU": gpus} if gpus else {})},
        ),
        run_config=RunConfig(
            name="ray_train",
            storage_path=given["folder"],
            failure_config=FailureConfig(max_failures=RESTARTS),
        ),
    ).fit()


def learn(given: dict[str, Any]) -> None:
    """What every rank of the group runs, its process group already up."""
    import torch
    import torch.distributed as dist

    config: RunConfig = given["config"]
    connection: Connection = given["connection"]
    rank = dist.get_rank()
    logs.configure(f"learner-{rank}", connection.run)
    use_threads(config.pools.learner_threads)
    meter, address = serve_metrics()
    publisher = None
    if rank == 0:
        publisher = ObjectStorePublisher(find_directory(connection.directory), DTYPES[config.weights])
    device = f"cuda:{torch.cuda.current_device()}" if given["gpus"] else "cpu"
    broker = connection.open()
    _say(config, broker, "joined", f"learner-{rank} {address}")
    try:
        build_learner(config, broker, publisher, meter, folder=Path(given["folder"]), device=device).run()
    except DroverError as error:
        # Said before it is raised: the driver ends the run at once, where Ray Train would try the same again.
        _say(config, broker, "failed", str(error))
        raise
    finally:
        broker.close()


def _say(config: RunConfig, broker: Broker, kind: str, text: str) -> None:
    report = Report(kind=kind, at_s=0.0, version=-1, scalars={}, text=text)
    Streams(broker, config).open(broker.keys.reports).put(report)
