"""The processes of a simulated fleet, which send real messages and blobs through the real transport and sleep to compute.

An actor here is a thread that handles an order as `drover.actors.worker.Actor` does, but sleeps instead of sampling. A
reward server is a thread that sleeps instead of scoring. The learner is the real intake (feeder, slots, assembler, ledger)
and reads every recorded state, as the ranks do.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from multiprocessing import Queue
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from threading import Thread
from typing import Any

import numpy as np
import psutil
import torch

from drover.common import tensors
from drover.common.media.blobs import pack, read
from drover.common.media.pictures import Pictures
from drover.common.metrics import Account, NullMeter
from drover.common.transport import keys
from drover.common.transport.redis_broker import RedisBroker
from drover.common.types import Ending, Measurement, MediaRef, RolloutGroup, Transitions, WorkItem
from drover.common.weights.memory import MemoryWeights
from drover.deploy.config import RunConfig
from drover.deploy.recipes.toy_ddpo import toy_ddpo
from drover.deploy.roles import Streams, build_intake, learner_streams

REWARD = "point"
JITTER = 0.2  # the time of a group varies by this share, as in real sampling
SCRAPE_S = 1.0


@dataclass(frozen=True, slots=True)
class Load:
    """The sizes and times of a group, for example SD 2 at 512 px: 16 samples, (4, 64, 64), float16, 512 px."""

    name: str
    samples: int
    latent: tuple[int, ...]
    dtype: str
    pixels: int
    sampling_s: float  # seconds of a group, on the card of the simulated actor
    scoring_s: float  # seconds of a group
    steps: int = 5  # recorded steps; in the worst case, which is simulated, no two are neighbours that share a state

    @property
    def states_shape(self) -> tuple[int, ...]:
        return (self.samples, 2 * self.steps, *self.latent)


@dataclass(frozen=True, slots=True)
class Fleet:
    """The sizes of a simulated service."""

    load: Load
    actors: int
    rewards: int
    servers: int = 1  # Redis servers
    max_lag: int = 2

    def config(self) -> RunConfig:
        """Return a run with enough slots to keep every actor busy while other groups are scored and collected."""
        groups = max(4, ceil(1.5 * self.actors / (self.max_lag + 1)))
        return replace(
            toy_ddpo(),
            iterations=1_000_000,
            groups=groups,
            samples=self.load.samples,
            max_lag=self.max_lag,
            stall_s=120.0,
        )


def blob_parts(load: Load) -> tuple[list[memoryview], list[memoryview], MediaRef, Transitions]:
    """Return (media, recording, their references) of a group. All groups use them: the content does not change the cost."""
    media = Pictures(np.zeros((load.samples, load.pixels, load.pixels, 3), np.uint8))
    states = torch.zeros(*load.states_shape, dtype=tensors.dtype_named(load.dtype))
    ((_, media_parts),), media_ref = pack(media, "")
    recording = {"states": states, "log_probs": torch.zeros(load.samples, load.steps, 1)}
    parts, refs = tensors.pack("", recording)
    steps = tuple(range(load.steps))
    transitions = Transitions(
        steps=steps,
        times=steps,
        next_times=steps,
        before=tuple(2 * step for step in steps),
        after=tuple(2 * step + 1 for step in steps),
        states=refs["states"],
        log_probs=refs["log_probs"],
    )
    return media_parts, parts, media_ref, transitions


def actors(url: str, run: str, fleet: Fleet, numbers: Sequence[int], version: Synchronized[int], stop: Event) -> None:
    """Run a process of actors, a thread each."""
    broker = RedisBroker(url, run)
    streams = Streams(broker, fleet.config())
    made = blob_parts(fleet.load)
    threads = [Thread(target=_actor, args=(broker, streams, fleet, number, made, version, stop)) for number in numbers]
    _run(threads)
    broker.close()


def _actor(
    broker: RedisBroker, streams: Streams, fleet: Fleet, number: int, made: Any, version: Synchronized[int], stop: Event
) -> None:
    media_parts, parts, media, transitions = made
    work = streams.open(broker.keys.work, keys.ACTORS, f"actor-{number}")
    rollouts, blobs, draw = streams.open(broker.keys.rollouts), broker.blobs(), random.Random(number)
    while not stop.is_set():
        for delivery in work.take(1, 0.5):
            item = delivery.message
            assert isinstance(item, WorkItem)
            began_with = version.value
            time.sleep(fleet.load.sampling_s * draw.uniform(1 - JITTER, 1 + JITTER))
            stem = f"{item.epoch}.{item.group}.{delivery.attempt}.{number}"
            blobs.put(f"{stem}/media", media_parts)
            blobs.put(f"{stem}/steps", parts)
            rollouts.put(
                RolloutGroup(
                    epoch=item.epoch,
                    group=item.group,
                    attempt=delivery.attempt,
                    purpose=item.purpose,
                    task=item.task,
                    rewards=item.rewards,
                    version=began_with,
                    prompts=item.prompts,
                    samples_per_prompt=item.samples_per_prompt,
                    fingerprint=item.fingerprint,
                    media=replace(media, arrays=((replace(media.arrays[0][0], blob=f"{stem}/media"),),)),
                    latents=None,
                    transitions=replace(
                        transitions,
                        states=replace(transitions.states, blob=f"{stem}/steps"),
                        log_probs=replace(transitions.log_probs, blob=f"{stem}/steps"),
                    ),
                    worker=f"actor-{number}",
                    sampling_s=fleet.load.sampling_s,
                )
            )
            work.ack(delivery)
    work.close()


def rewards(url: str, run: str, fleet: Fleet, numbers: Sequence[int], stop: Event) -> None:
    """Run a process of reward servers, a thread each."""
    broker = RedisBroker(url, run)
    streams = Streams(broker, fleet.config())
    _run([Thread(target=_reward, args=(broker, streams, fleet, number, stop)) for number in numbers])
    broker.close()


def _reward(broker: RedisBroker, streams: Streams, fleet: Fleet, number: int, stop: Event) -> None:
    rollouts = streams.open(broker.keys.rollouts, keys.reward_group(REWARD), f"{REWARD}-{number}")
    measurements, blobs = streams.open(broker.keys.measurements), broker.blobs()
    while not stop.is_set():
        for delivery in rollouts.take(1, 0.5):
            group = delivery.message
            assert isinstance(group, RolloutGroup)
            assert group.media is not None
            read(blobs, group.media)
            time.sleep(fleet.load.scoring_s)
            count = group.num_samples
            measurements.put(
                Measurement(
                    epoch=group.epoch,
                    group=group.group,
                    attempt=group.attempt,
                    purpose=group.purpose,
                    reward=REWARD,
                    values=(0.0,) * count,
                    valid=(True,) * count,
                    reasons=("",) * count,
                    uncertainty=None,
                    features=None,
                    worker=f"{REWARD}-{number}",
                    scoring_s=fleet.load.scoring_s,
                    waited_s=0.0,
                )
            )
            rollouts.ack(delivery)
    rollouts.close()


def learner(url: str, run: str, fleet: Fleet, version: Synchronized[int], stop: Event, said: Queue[Any]) -> None:
    """Run the real intake; put trained groups, largest lag, balance of the ledger, and memory on ``said`` every second."""
    config = fleet.config()
    broker = RedisBroker(url, run)
    streams = learner_streams(config, broker)
    intake = build_intake(config, streams, MemoryWeights(torch.float32), Account("learner", NullMeter()), None)
    blobs, process = broker.blobs(), psutil.Process()
    groups = lag = told_s = reading_s = 0.0
    read_bytes = 0
    while not stop.is_set():
        found = intake.collect(
            config.groups, total=config.iterations * config.groups, version=version.value, stopping=stop.is_set
        )
        if found is None:
            break
        for group in found:
            transitions = group.rollout.transitions
            assert transitions is not None
            began = time.monotonic()
            for ref in (transitions.states, transitions.log_probs):
                tensors.read(blobs, ref)
                read_bytes += ref.nbytes
            reading_s += time.monotonic() - began
            lag = max(lag, version.value - group.rollout.version)
            groups += 1
        with version.get_lock():
            version.value += 1
        for group in found:
            intake.end(group.rollout.group, Ending.TRAINED)
        intake.release(len(found))
        if time.monotonic() - told_s > SCRAPE_S:
            told_s = time.monotonic()
            said.put(
                {
                    "at_s": told_s,
                    "groups": groups,
                    "lag": lag,
                    "balanced": intake.ledger.balanced and intake.ledger.endings[Ending.TRAINED] == groups,
                    "memory": process.memory_info().rss,
                    "reading_s": reading_s,
                    "read_bytes": read_bytes,
                }
            )
    said.close()


def _run(threads: Sequence[Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
