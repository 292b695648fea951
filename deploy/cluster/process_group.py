"""Joins the learner's ranks in a process group, whose store listens on one address only: that of rank 0's node.

By default torch opens the store on every address of the machine, where any program of the network could write into it.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from datetime import timedelta
from typing import Any

LONGEST_ITERATION_S = 86_400  # ranks wait in a broadcast while rank 0 gathers; Ray Train notices dead ranks

_store: list[Any] = []  # rank 0's store, which listens until the process ends


def torch_config(backend: str) -> Any:
    """Return Ray Train's ``TorchConfig`` for "gloo" or "nccl", with a store that listens on rank 0's node address only."""
    import ray
    from ray.train.torch import TorchConfig
    from ray.train.torch.config import _TorchBackend

    class OnNode(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            host, port = worker_group.execute_single(0, open_store)
            count, timeout_s = len(worker_group), backend_config.timeout_s
            given = {"host": host, "port": port, "count": count, "backend": backend, "timeout_s": timeout_s}
            ray.get([worker_group.execute_single_async(rank, join, number=rank, **given) for rank in range(count)])

    class OnNodeConfig(TorchConfig):
        @property
        def backend_cls(self) -> type[OnNode]:
            return OnNode

    return OnNodeConfig(backend=backend, timeout_s=LONGEST_ITERATION_S)


def open_store() -> tuple[str, int]:
    """Open a store in rank 0, on its node's address in Ray (loopback in a Ray of our own); return its (host, port)."""
    import ray.util
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.bind((host, 0))
    listener.listen(128)
    port: int = listener.getsockname()[1]
    # The store takes the socket over. An earlier learner in this process, if any, has ended its group.
    _store[:] = [TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())]
    return host, port


def join(*, number: int, count: int, host: str, port: int, backend: str, timeout_s: int) -> None:
    """Join the process group; every rank calls this."""
    import torch.distributed as dist
    from ray.train import get_context
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    context = get_context()
    os.environ.update(  # where torch and accelerate look for them
        RANK=str(number),
        WORLD_SIZE=str(count),
        LOCAL_RANK=str(context.get_local_rank()),
        LOCAL_WORLD_SIZE=str(context.get_local_world_size()),
        NODE_RANK=str(context.get_node_rank()),
        MASTER_ADDR=host,
        MASTER_PORT=str(port),
    )
    if ipaddress.ip_address(host).is_loopback:  # then all ranks are on this machine, and gloo need not listen elsewhere
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    timeout = timedelta(seconds=timeout_s)
    store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=timeout)
