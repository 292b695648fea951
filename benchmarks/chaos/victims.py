"""The parts of a run that are killed, cut off or halted (victims), and the functions that do it (strikes).

A strike looks its process up each time, because an earlier strike has replaced it.
"""

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
GONE_S = 150.0  # time for a dead driver's processes to end
CUT_S = (2.0, 45.0)  # Ray gives a node up after some 30 s of silence: some cuts are shorter, some longer
PREEMPTION_S = 5.0  # most seconds of a worker from SIGTERM to its end


@dataclass(frozen=True, slots=True)
class Scene:
    """A run with its Redis and its cluster, which are None if the victim needs none of its own."""

    service: Service
    chance: random.Random
    redis: OwnRedis | None
    cluster: ThreeNodes | None


Strike = Callable[[Scene], dict[str, float]]
"""Kills or cuts off one part of a scene; returns its own measurements, for example ``{"gone_s": 2.1}``."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A part of a run and its strike. ``most``: the samples that one strike may cause to be drawn again."""

    name: str
    strike: Strike
    most: int
    arguments: tuple[str, ...] = ()  # options of the recipe
    own_redis: bool = False  # the run uses a Redis of the benchmark's own, with an append-only file
    three_nodes: bool = False  # the run is on a cluster of three nodes


def worker(role: str, how: signal.Signals) -> Strike:
    """Make the strike that sends a signal to the process that works as "actor" or "reward"."""

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
    """Make the strike that sends a signal to a random learner rank."""

    def strike(scene: Scene) -> dict[str, float]:
        service = scene.service
        service.until(lambda: bool(service.children(LEARNER_TITLE)), "learner rank")
        with suppress(psutil.NoSuchProcess):
            scene.chance.choice(service.children(LEARNER_TITLE)).send_signal(how)
        return {}

    return strike


def driver(scene: Scene) -> dict[str, float]:
    """Kill the command itself; the processes that it had started must end too."""
    service = scene.service
    left = service.family()
    began_s = time.monotonic()
    service.process.kill()
    workers = [process for process in left if "Agent" not in title(process)]
    service.until(lambda: not any(map(running, workers)), "end of what the driver had started", patience_s=GONE_S)
    return {"gone_s": time.monotonic() - began_s}


def embedded_redis(scene: Scene) -> dict[str, float]:
    """Kill the embedded Redis of the command, which comes back empty."""
    for process in scene.service.children("redis-server"):
        process.kill()
    return {}


def own_redis(scene: Scene) -> dict[str, float]:
    """Kill the benchmark's own Redis, and restart it with its append-only file."""
    assert scene.redis is not None
    began_s = time.monotonic()
    scene.redis.kill()
    time.sleep(scene.chance.uniform(0.0, 2.0))
    scene.redis.start()
    return {"gone_s": time.monotonic() - began_s}


def node(scene: Scene) -> dict[str, float]:
    """Kill all processes on the node of the actors or of the reward servers; `ThreeNodes.look` restarts the node."""
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
    """Return whether the process runs. Unlike `alive`, it notices that another process has the pid by now."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
