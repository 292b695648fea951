"""The learner's ranks as a Ray Train worker group: placed, joined in a process group, started again when one dies."""

from __future__ import annotations

import threading
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

LEAVE_S = 20.0  # what the thread gets to notice that Ray is gone
RESTARTS = 3  # times a dead group is started again, from its newest checkpoint


class LearnerGroup:
    """Runs in a thread of the driver, because Ray Train's ``fit`` blocks and the driver shows progress."""

    def __init__(self, config: RunConfig, connection: Connection, folder: Path, *, gpus: float) -> None:
        self._config, self._connection, self._folder, self._gpus = config, connection, folder.resolve(), gpus
        self._thread = threading.Thread(target=self._fit, name="learner", daemon=True)
        self.failure: DroverError | None = None

    def start(self) -> None:
        """Returns at once."""
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        """Wait until the thread has left Ray, once that is shut down. One still inside would crash Python's own end."""
        if self._thread.ident is not None:
            self._thread.join(LEAVE_S)

    def _fit(self) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        pools, gpu = self._config.pools, self._gpus > 0
        given = {"config": self._config, "connection": self._connection, "folder": str(self._folder), "gpu": gpu}
        trainer = TorchTrainer(
            learn,
            train_loop_config=given,
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=pools.learner_ranks,
                use_gpu=gpu,
                resources_per_worker={"CPU": pools.learner_threads, **({"GPU": self._gpus} if gpu else {})},
            ),
            run_config=RunConfig(
                name="ray_train",
                storage_path=str(self._folder),
                failure_config=FailureConfig(max_failures=RESTARTS),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:  # handed to the driver's thread, which raises it
            self.failure = DroverError(f"the learner failed: {cause(error)}")
            self.failure.__cause__ = error


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
    device = f"cuda:{torch.cuda.current_device()}" if given["gpu"] else "cpu"
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
