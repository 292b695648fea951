"""Runs all roles in one process, taking turns: while the learner waits, the others work. No threads, no Ray, no Redis.

The roles and seams are those of the distributed service, which must give the same results bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from drover.common.errors import DroverError
from drover.common.protocols import Meter
from drover.common.tensors import dtype_named
from drover.common.transport import keys
from drover.common.transport.memory import MemoryBroker
from drover.common.types import Report
from drover.common.weights.memory import MemoryWeights
from drover.deploy.config import RunConfig
from drover.deploy.roles import Streams, build_actor, build_learner, build_reward_server, use_threads
from drover.deploy.run_folder.results import RunFolder
from drover.deploy.run_folder.watch import View, Watcher


def train(config: RunConfig, folder: RunFolder, view: View, meter: Meter, stopping: Callable[[], bool]) -> Watcher:
    """Train to the end, or until ``stopping()`` is True. ``Watcher.ended`` of the result says which."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = replace(config, pools=replace(config.pools, evaluators=0))  # one actor takes all orders
    use_threads(config.pools.learner_threads)
    broker, weights = MemoryBroker("local"), MemoryWeights(dtype_named(config.weights))
    streams = Streams(broker, config)
    watcher = Watcher(streams.open(broker.keys.reports, keys.WATCHER), broker.blobs(), folder, view)
    control = streams.open(broker.keys.control)
    watcher.tell(Report(kind="phase", at_s=0.0, version=-1, scalars={}, text="loading the model"))
    actor = build_actor(config, broker, weights, meter, name="actor-0", device=device)
    servers = [
        build_reward_server(config, reward.name, broker, meter, name=f"{reward.name}-0", device=device)
        for reward in config.rewards
    ]
    asked = False

    def others_work() -> None:
        nonlocal asked
        if stopping() and not asked:
            asked = True
            control.put(Report(kind="stop", at_s=0.0, version=-1, scalars={}))
        scored = [server.run_once(0.0) for server in servers]
        if not any(scored):
            actor.run_once(0.0)
        watcher.poll(0.0)

    with process_group(folder.path):
        learner = build_learner(config, broker, weights, meter, folder=folder.path, device=device, wait=others_work)
        try:
            learner.run()
        except DroverError as error:
            troubles = [f"{server.reward}: {server.trouble}" for server in servers if server.trouble]
            if not troubles:
                raise
            raise DroverError("; ".join([str(error), *troubles])) from error
    watcher.poll(0.0)
    broker.close()
    return watcher


@contextmanager
def process_group(folder: Path) -> Iterator[None]:
    """Hold a torch.distributed process group of one rank during the block."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
