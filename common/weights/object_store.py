"""Carry weights through Ray's object store: put once, one copy per node, read in place by every actor of that node.

A small directory actor holds the references and the version pointer. The pointer moves last, so a version that can be
seen is whole. Ray drops the objects when the learner process that put them ends. The restarted learner publishes anew, and an
actor that loads in between gets `WeightsLost` and waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drover.common.errors import WeightsLost
from drover.common.protocols import Canary
from drover.common.weights import flat
from drover.common.weights.shelf import Shelf

KEPT = 2  # versions: the newest, and the one that an actor may be loading while the newest arrives; pinned ones beside


class WeightDirectory:
    """Maps versions to references of weights, in a Ray actor that `start_directory` starts and that lasts for the run."""

    def __init__(self) -> None:
        self._shelf: Shelf[tuple[flat.Manifest, list[Any]]] = Shelf(newest=KEPT)
        self._newest = (
            -1
        )  # over all learner processes: a restarted learner that ends before it publishes must not lower it

    def register(self, manifest: flat.Manifest, refs: list[Any]) -> None:
        """Add a version. ``refs`` is the one-element list [buffer]; in a list, Ray passes the reference and not the value."""
        self._shelf.put(manifest.version, (manifest, refs))
        self._newest = max(self._newest, manifest.version)

    def latest(self) -> int:
        return self._shelf.latest()

    def find(self, version: int) -> tuple[flat.Manifest, list[Any]] | None:
        return self._shelf.get(version)

    def pin(self, version: int) -> bool:
        return self._shelf.pin(version)

    def unpin(self, version: int) -> None:
        self._shelf.unpin(version)

    def forget(self) -> int:
        """Drop all versions and pins for a restarted learner. Returns the newest version there was; -1 without one."""
        self._shelf.clear()
        return self._newest


def start_directory(name: str) -> Any:
    """Start a directory on this node, as it must not end with another node. It lasts as long as the returned handle."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(WeightDirectory).options(name=name).remote()


def find_directory(name: str) -> Any:
    """A handle to the directory of that name in this Ray namespace."""
    import ray

    return ray.get_actor(name)


class ObjectStorePublisher:
    """Publishes the learner's weights in the object store."""

    def __init__(self, directory: Any, dtype: torch.dtype) -> None:
        import ray

        self._directory, self._dtype = directory, dtype
        self._buffer: np.ndarray | None = None
        self.floor = int(ray.get(directory.forget.remote()))

    def publish(self, version: int, tensors: Mapping[str, Tensor], canary: Canary | None) -> None:
        import ray

        manifest, self._buffer = flat.pack(version, tensors, self._dtype, canary, reuse=self._buffer)
        # The put copies: the buffer is free again, and the version cannot change once it is registered.
        ray.get(self._directory.register.remote(manifest, [ray.put(self._buffer)]))

    def pin(self, version: int) -> None:
        import ray

        if not ray.get(self._directory.pin.remote(version)):
            raise WeightsLost(f"version {version} cannot be pinned, it is not in the object store any more")

    def unpin(self, version: int) -> None:
        import ray

        ray.get(self._directory.unpin.remote(version))


class ObjectStoreSubscriber:
    """Loads weights from the object store into an actor's module."""

    def __init__(self, directory: Any) -> None:
        self._directory = directory

    def latest(self) -> int:
        import ray

        return int(ray.get(self._directory.latest.remote()))

    def load(self, version: int, into: nn.Module) -> Canary | None:
        import ray

        found = ray.get(self._directory.find.remote(version))
        if found is None:
            raise WeightsLost(f"version {version} is not in the object store any more; the newest is {self.latest()}")
        manifest, (ref,) = found
        try:
            buffer = ray.get(ref)
        except (ray.exceptions.ObjectLostError, ray.exceptions.OwnerDiedError) as error:
            raise WeightsLost(f"version {version} died with the learner that published it") from error
        flat.load(manifest, buffer, into)
        return manifest.canary
