"""How the learner's ranks find each other: torch's store on the address of rank 0's node, and on no other.

Left to itself torch opens the store on every address of the machine, for whoever likes to write into it.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from datetime import timedelta
from typing import Any

LONGEST_ITERATION_S = 86_400  # ranks wait in a broadcast while rank 0 gathers; that a rank is dead, Ray Train notices

_store: list[Any] = []  # rank 0's: it listens as long as the process lives


def torch_config(backend: str) -> Any:
    """Ray Train's ``TorchConfig`` for "gloo" or "nccl", but for where the store listens."""
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
    """In rank 0: (host, port) of a new store, on the address that its node has in Ray; loopback in a Ray of our own."""
    import ray.util
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.bind((host, 0))
    listener.listen(128)
    port: int = listener.getsockname()[1]
    # The store takes the socket over; the process that was here before, if any, has ended its own group.
    _store[:] = [TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())]
    return host, port


def join(*, number: int, count: int, host: str, port: int, backend: str, timeout_s: int) -> None:
    """In every rank: become part of the process group."""
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
    if ipaddress.ip_address(host).is_loopback:  # then nobody else takes part, and nothing need listen elsewhere
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    timeout = timedelta(seconds=timeout_s)
    store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=timeout)
