"""Who is struck, and how: every victim is found anew each time, for the one before it is gone."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psutil

from benchmarks.chaos.own_redis import OwnRedis
from benchmarks.chaos.service import Service
from benchmarks.chaos.three_nodes import REWARD, ROLLOUT, ThreeNodes

LEARNER_TITLE = "RayTrainWorker"
GONE_S = 150.0  # what a dead driver's processes get to notice it, before they count as left behind
CUT_S = (2.0, 45.0)  # Ray gives a node up after some 30 s of silence: some cuts are shorter, some longer
PREEMPTION_S = 5.0  # what a worker gets from SIGTERM to its end


@dataclass(frozen=True, slots=True)
class Scene:
    """A run and what it stands on. ``redis`` and ``cluster`` are there where the victim asks for them."""

    service: Service
    chance: random.Random
    redis: OwnRedis | None
    cluster: ThreeNodes | None


Strike = Callable[[Scene], dict[str, float]]
"""Strikes once; what it measured besides, for example ``{"gone_s": 2.1}``."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A kind of torment. ``most`` is how many samples one strike may cause to be drawn again."""

    name: str
    strike: Strike
    most: int
    arguments: tuple[str, ...] = ()  # of the recipe
    own_redis: bool = False  # the run uses a Redis of the benchmark's own, with an append-only file
    three_nodes: bool = False  # the run is on a cluster of three nodes


def worker(role: str, how: signal.Signals) -> Strike:
    """The process that works as "actor" or "reward"."""

    def strike(scene: Scene) -> dict[str, float]:
        service, began_s = scene.service, time.monotonic()
        pid = service.worker(role)
        psutil.Process(pid).send_signal(how)
        if how is not signal.SIGTERM:
            return {}
        service.until(lambda: not alive(pid), f"end of {role} {pid}", patience_s=10 * PREEMPTION_S)
        return {"gone_s": time.monotonic() - began_s}

    return strike


def learner_rank(how: signal.Signals) -> Strike:
    """Any of them."""

    def strike(scene: Scene) -> dict[str, float]:
        service = scene.service
        service.until(lambda: bool(service.children(LEARNER_TITLE)), "learner rank")
        with suppress(psutil.NoSuchProcess):
            scene.chance.choice(service.children(LEARNER_TITLE)).send_signal(how)
        return {}

    return strike


def driver(scene: Scene) -> dict[str, float]:
    """The command itself; what it had started must end too."""
    service = scene.service
    left = service.family()
    began_s = time.monotonic()
    service.process.kill()
    workers = [process for process in left if "Agent" not in title(process)]
    service.until(lambda: not any(map(running, workers)), "end of what the driver had started", patience_s=GONE_S)
    return {"gone_s": time.monotonic() - began_s}


def embedded_redis(scene: Scene) -> dict[str, float]:
    """The one that the command brought: it comes back empty."""
    for process in scene.service.children("redis-server"):
        process.kill()
    return {}


def own_redis(scene: Scene) -> dict[str, float]:
    """Redis, started again by whoever runs it, with what its append-only file has."""
    assert scene.redis is not None
    began_s = time.monotonic()
    scene.redis.kill()
    time.sleep(scene.chance.uniform(0.0, 2.0))
    scene.redis.start()
    return {"gone_s": time.monotonic() - began_s}


def node(scene: Scene) -> dict[str, float]:
    """All processes of the actors' or of the reward servers' node; `ThreeNodes.look` starts a new one."""
    assert scene.cluster is not None
    scene.cluster.nodes[scene.chance.choice((ROLLOUT, REWARD))].kill()
    return {}


def cable(scene: Scene) -> dict[str, float]:
    """Cut the node of the actors, or of the reward servers, off from the others for a while."""
    assert scene.cluster is not None
    struck, began_s = scene.cluster.nodes[scene.chance.choice((ROLLOUT, REWARD))], time.monotonic()
    heals_s = began_s + scene.chance.uniform(*CUT_S)
    struck.cut()
    try:
        scene.service.until(lambda: time.monotonic() > heals_s, "time to heal")
    finally:
        struck.heal()
    return {"gone_s": time.monotonic() - began_s}


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def running(process: psutil.Process) -> bool:
    """Unlike `alive`, not fooled by a pid that somebody else has by now."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
