"""Measures how many actors and reward servers one Redis and one learner can serve: `python -m benchmarks.fleet`.

Up to 1,000 simulated actors and 200 reward servers use one real Redis of this machine, or two, with messages and blobs of
real size; they sleep instead of computing. Redis and the simulated fleet share this machine's cores, so the result is a
lower bound for a Redis with a core of its own. "Busy" is the reached share of the fleet's own pace: below 0.9 something on
this machine is full.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.process import BaseProcess
from queue import Empty
from typing import Any

import psutil
import redis
from rich.table import Table

from benchmarks import measure
from benchmarks.fleet import simulated
from benchmarks.fleet.simulated import SCRAPE_S, Fleet, Load
from benchmarks.measure import significant, table
from drover.common.transport import keys
from drover.common.transport.embedded import EmbeddedRedis
from drover.common.transport.redis_broker import RedisBroker
from drover.deploy.roles import Streams

THREADS = 80  # actors or reward servers of a process; redis-py allows 100 connections to a process
REDIS_BYTES = 8 << 30
CARD_SAMPLES_PER_S = 4.8  # SD 2, 512 px, 50 steps, guidance, on an H200 at 40 % of its peak: 83 TFLOP a sample
SD2_GROUP = 16
SD2 = Load("SD 2, 512 px, float16", SD2_GROUP, (4, 64, 64), "float16", 512, SD2_GROUP / CARD_SAMPLES_PER_S, 0.3)
SMALL = Load("shapes, 32 px, float32", 8, (4, 8, 8), "float32", 32, 4.0, 0.3)
SIZES = {
    "small": (SMALL, [(50, 10, 1), (200, 40, 1), (500, 100, 1), (1000, 200, 1)]),
    "sd2": (SD2, [(10, 4, 1), (25, 8, 1), (50, 16, 1), (100, 30, 1), (100, 30, 2)]),
}
"""Name -> (load of a group, [(actors, reward servers, Redis servers)])."""

SECONDS, QUICK_SECONDS = 30.0, 6.0


def main() -> None:
    chosen = measure.options(__doc__.splitlines()[0] if __doc__ else "")
    facts = measure.machine()
    seconds = QUICK_SECONDS if chosen.quick else SECONDS
    found = []
    for load, sizes in SIZES.values():
        for size in sizes[:1] if chosen.quick else sizes:
            found.append(one(Fleet(load, *size), seconds))
    measure.show(chosen, facts, {"fleets": found}, [pace_table(found), memory_table(found)])


def one(fleet: Fleet, seconds: float) -> dict[str, Any]:
    """Run the fleet for ``seconds`` after its first iteration; return its figures."""
    with ExitStack() as stack:
        servers = [stack.enter_context(EmbeddedRedis(max_memory_bytes=REDIS_BYTES)) for _ in range(fleet.servers)]
        urls = " ".join(server.url for server in servers)
        run = f"fleet-{fleet.actors}"
        context = multiprocessing.get_context("spawn")
        version, stop, said = context.Value("q", 0), context.Event(), context.Queue()
        learner = context.Process(target=simulated.learner, args=(urls, run, fleet, version, stop, said))
        crowd = [
            context.Process(target=simulated.rewards, args=(urls, run, fleet, part, stop))
            for part in parts(fleet.rewards)
        ] + [
            context.Process(target=simulated.actors, args=(urls, run, fleet, part, version, stop))
            for part in parts(fleet.actors)
        ]
        with running([learner, *crowd], stop):
            watched = watch(servers, run, fleet, said, seconds)
        size = {"actors": fleet.actors, "rewards": fleet.rewards, "servers": fleet.servers}
        return watched | {"load": fleet.load.name} | size


def parts(count: int) -> list[range]:
    return [range(start, min(start + THREADS, count)) for start in range(0, count, THREADS)]


@contextmanager
def running(processes: list[BaseProcess], stop: Any) -> Iterator[None]:
    for process in processes:
        process.start()
    try:
        yield
    finally:
        stop.set()
        for process in processes:
            process.join(20)
            if process.is_alive():
                process.kill()


def watch(servers: Sequence[EmbeddedRedis], run: str, fleet: Fleet, said: Any, seconds: float) -> dict[str, Any]:
    """Measure queues and Redis once a second, as the driver does, from the end of the first iteration on."""
    broker = RedisBroker(" ".join(server.url for server in servers), run)
    streams = Streams(broker, fleet.config())
    queues = [
        streams.open(broker.keys.work, keys.ACTORS),
        streams.open(broker.keys.rollouts, keys.reward_group("point")),
    ]
    redises = [(redis.Redis.from_url(server.url), server.pid) for server in servers]
    first = said.get(timeout=300)
    began = [facts_of(*one) for one in redises]
    last, memory = first, 0.0
    backlog = 0
    unbalanced = 0
    while last["at_s"] - first["at_s"] < seconds:
        backlog = max(backlog, *(queue.backlog()[0] for queue in queues))
        memory = max(memory, sum(facts_of(*one)["memory"] for one in redises))
        try:
            last = said.get(timeout=SCRAPE_S)
        except Empty:
            continue
        unbalanced += not last["balanced"]
    # For each server, the rates per second of its facts.
    spent = [per_second(before, facts_of(*one)) for before, one in zip(began, redises, strict=True)]
    broker.close()
    elapsed = last["at_s"] - first["at_s"]
    pace = (last["groups"] - first["groups"]) / elapsed
    reading = last["reading_s"] - first["reading_s"]
    return {
        "groups_per_s": pace,
        "share_of_pace": pace * fleet.load.sampling_s / fleet.actors,
        "samples_per_s": pace * fleet.load.samples,
        "mb_per_s": sum(one["moved"] for one in spent) / 1e6,
        "ingest_mb_per_s": (last["read_bytes"] - first["read_bytes"]) / reading / 1e6 if reading else 0.0,
        "redis_share_of_core": max(one["cpu_s"] for one in spent),
        "commands_per_s": sum(one["commands"] for one in spent),
        "backlog": backlog,
        "lag": last["lag"],
        "max_lag": fleet.max_lag,
        "unbalanced_scrapes": unbalanced,
        "redis_memory": memory,
        "learner_memory": last["memory"],
        "driver_memory": psutil.Process().memory_info().rss,
    }


def facts_of(client: redis.Redis, pid: int) -> dict[str, float]:
    """Return Redis' own counters, and the CPU seconds of its process."""
    info: dict[str, Any] = client.info()
    times = psutil.Process(pid).cpu_times()
    return {
        "at_s": time.monotonic(),
        "moved": info["total_net_input_bytes"] + info["total_net_output_bytes"],
        "commands": info["total_commands_processed"],
        "memory": info["used_memory"],
        "cpu_s": times.user + times.system,
    }


def per_second(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: (after[name] - before[name]) / (after["at_s"] - before["at_s"]) for name in before}


def pace_table(found: list[dict[str, Any]]) -> Table:
    rows = [
        [
            one["load"],
            size_of(one),
            significant(one["groups_per_s"]),
            significant(one["samples_per_s"]),
            f"{one['share_of_pace']:.2f}",
            significant(one["mb_per_s"]),
            significant(one["ingest_mb_per_s"]),
            f"{one['redis_share_of_core']:.2f}",
            significant(one["actors"] * one["share_of_pace"] / one["redis_share_of_core"]),
            significant(one["commands_per_s"]),
            f"{one['lag']:.0f} of {one['max_lag']}",
        ]
        for one in found
    ]
    heads = [
        "load",
        "actors + rewards",
        "groups/s",
        "samples/s",
        "busy",
        "Redis MB/s",
        "learner reads MB/s",
        "Redis core",
        "actors a core",
        "commands/s",
        "lag",
    ]
    return table("pace", heads, rows)


def size_of(one: dict[str, Any]) -> str:
    return f"{one['actors']} + {one['rewards']}" + (f", {one['servers']} Redis" if one["servers"] > 1 else "")


def memory_table(found: list[dict[str, Any]]) -> Table:
    rows = [
        [
            one["load"],
            size_of(one),
            *(significant(one[f"{name}_memory"] / 1e6) for name in ("redis", "learner", "driver")),
            str(one["backlog"]),
            str(one["unbalanced_scrapes"]),
        ]
        for one in found
    ]
    heads = [
        "load",
        "actors + rewards",
        "Redis MB",
        "learner MB",
        "driver MB",
        "longest queue",
        "ledger off at scrapes",
    ]
    return table("memory and accounts", heads, rows)


if __name__ == "__main__":
    main()
