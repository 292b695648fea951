"""Checks that a Ray has room for the processes a run starts with, and divides GPUs. Pure: takes nodes' resources, knows no Ray.

Ray itself waits for room without limit and without a message. This check compares sums and single requests and tries no
packing. A refused request could never be placed. An accepted one may still wait for room; the driver then reports it
(`pools.py`, `driver.py`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor

from drover.common.errors import ConfigError
from drover.common.words import counted
from drover.deploy.cluster.learner_group import GROUP as LEARNER
from drover.deploy.cluster.worker import Pool, pools_of
from drover.deploy.config import RunConfig

CPU, GPU = "CPU", "GPU"
LOWER = {
    CPU: "lower --actors, --actor-threads or --learner-ranks",
    GPU: "lower --reward-gpus, --reward-servers, --actors or --learner-ranks",
}
FINEST = 10_000  # parts of a GPU that Ray can tell apart
SLACK = 1e-6

Resources = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Ask:
    """The request of one role: ``count`` processes with ``each`` resources, on nodes with the custom resource ``mark``.

    In a cluster without such nodes they go to any node.
    """

    role: str
    count: int
    each: Resources
    mark: str


def asks(config: RunConfig, pools: Sequence[Pool], gpus: float) -> list[Ask]:
    """Return the requests of the run at its start. ``gpus``: GPUs of each learner rank."""
    ranks = config.pools.learner_ranks
    rank = {CPU: float(config.pools.learner_threads), GPU: gpus}
    return [
        *(Ask(pool.name, pool.size, {CPU: pool.cpus, GPU: pool.gpus}, pool.group) for pool in pools),
        Ask(LEARNER, ranks, rank, LEARNER),
    ]


def this_machine(config: RunConfig) -> list[Resources]:
    """Return the resources of the single node of a Ray that the run starts itself. GPUs count if torch can use them."""
    import torch

    learner = config.pools.learner_ranks * config.pools.learner_threads
    return [{CPU: float(max(learner, os.cpu_count() or 1)), GPU: float(torch.cuda.device_count())}]


def plan(config: RunConfig, nodes: Sequence[Resources], *, alone: bool) -> tuple[list[Pool], float]:
    """Return the run's pools and the GPUs of each learner rank. Raises `ConfigError` if the nodes have no room for them.

    ``alone``: the Ray is this machine's own, whose CPUs all processes share.
    """
    gpus = gpus_each(config, nodes, alone=alone)
    pools = pools_of(config, gpus=gpus)
    if missing := shortage(asks(config, pools, gpus), nodes, alone=alone):
        raise ConfigError(missing)
    return pools, gpus


def shortage(asked: Sequence[Ask], nodes: Sequence[Resources], *, alone: bool = False) -> str:
    """Return a message with the missing resources and the fix; "" where there may be room."""
    names = (GPU,) if alone else (CPU, GPU)
    out = "or use a cluster" if alone else "or add nodes"
    marked = {mark for node in nodes for mark in node}
    groups: dict[str, list[Ask]] = {"": list(asked)}
    for ask in asked:
        if ask.mark in marked:
            groups.setdefault(ask.mark, []).append(ask)
    for mark, members in groups.items():
        there = [node for node in nodes if not mark or node.get(mark, 0) > 0]
        where = f"the nodes marked {mark} have" if mark else "this machine has" if alone else "the cluster has"
        for name in names:
            wanted = sum(ask.count * ask.each[name] for ask in members)
            have = sum(node.get(name, 0.0) for node in there)
            if wanted > have + SLACK:
                sum_of = " + ".join(f"{ask.count} {ask.role} x {ask.each[name]:g}" for ask in members if ask.each[name])
                return f"this run asks for {counted(wanted, name)} ({sum_of}), {where} {have:g}; {LOWER[name]}, {out}"
        for ask in members if mark else [ask for ask in asked if ask.mark not in marked]:
            if not any(all(node.get(name, 0.0) + SLACK >= ask.each[name] for name in names) for node in there):
                each = " and ".join(counted(ask.each[name], name) for name in names if ask.each[name])
                kin = f" marked {mark}" if mark else ""
                return f"each process of {ask.role} asks for {each} of one node, and no node{kin} has that; {LOWER[CPU]}, {out}"
    return ""


def gpus_each(config: RunConfig, nodes: Sequence[Resources], *, alone: bool) -> float:
    """Return the GPUs of every actor, evaluator and learner rank: 1 on a cluster, an equal share on a machine with too few.

    ``alone``: the Ray is this machine's own. A share lies on one GPU, beside others; rewards with GPUs get theirs first.
    0 without GPUs. Raises `ConfigError` where the GPUs cannot be divided.
    """
    count = sum(node.get(GPU, 0.0) for node in nodes)
    if not alone or count == 0:
        return float(count > 0)
    pools = pools_of(config, gpus=0.0)
    rewards = sum(pool.size * pool.gpus for pool in pools)
    ranks = config.pools.learner_ranks
    sharers = ranks + sum(pool.size for pool in pools if pool.role != "reward")
    whole = count - ceil(rewards - SLACK)
    share = min(1.0, 1 / ceil(sharers / whole)) if whole >= 1 else (count - rewards) / sharers
    share = floor(share * FINEST) / FINEST
    if share <= 0 or (share < 1 and ranks > 1):
        raise ConfigError(
            f"this machine has {count:g} GPUs, of which rewards take {rewards:g}, for {ranks} learner ranks and "
            f"{sharers - ranks} actors and evaluators, and several ranks need one each; pass --learner-ranks 1, or fewer of "
            "the others"
        )
    return share
