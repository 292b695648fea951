"""The pools of actors and reward servers as Ray actors: placed, watched, replaced when they die, stopped in order."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from actors.worker import Actor
from common import log as logs
from common.errors import DroverError
from common.weights.object_store import ObjectStoreSubscriber, find_directory
from deploy.config import RunConfig
from deploy.connection import Connection, serve_metrics
from deploy.environments import failure, packages_of, runtime_env
from deploy.roles import build_actor, build_reward_server, use_threads
from reward_servers.server import RewardServer

DESCRIBE_S = 5.0  # what workers get to answer a last question
STOP_S = 15.0  # what workers get to finish what they hold
REWARD_CPUS = 0.1  # Ray's share of a reward server on the CPU; it sleeps most of the time
RESTARTS: dict[str, Any] = {"max_restarts": -1, "max_task_retries": -1, "max_concurrency": 2}


@dataclass(frozen=True, slots=True)
class Place:
    """One process: its role, its rewards if it serves some, what it may use, and the packages of its own environment."""

    name: str
    role: str  # "actor" or "reward"
    rewards: tuple[str, ...]
    threads: int
    gpus: float
    packages: tuple[str, ...] = ()  # none: it shares drover's

    @property
    def pools(self) -> tuple[str, ...]:
        """The scalars that count the pools it is in."""
        return ("pool/rollout",) if self.role == "actor" else tuple(f"pool/reward/{name}" for name in self.rewards)

    @property
    def cpus(self) -> float:
        """What Ray is asked for."""
        return float(self.threads) if self.role == "actor" else REWARD_CPUS


def places(config: RunConfig, *, gpus: float) -> list[Place]:
    """Every worker of the run, rewards first: they have the least to load."""
    pools = config.pools
    servers = [
        Place(f"{name}-{i}", "reward", rewards, 1, pools.reward_gpus, packages)
        for name, rewards, packages in _served(config)
        for i in range(pools.reward_servers)
    ]
    return servers + [Place(f"actor-{i}", "actor", (), pools.actor_threads, gpus) for i in range(pools.actors)]


Served = tuple[str, tuple[str, ...], tuple[str, ...]]


def _served(config: RunConfig) -> list[Served]:
    """(name, rewards, packages) of each kind of reward process."""
    own: list[Served] = [(reward.name, (reward.name,), packages_of(reward)) for reward in config.rewards]
    if not config.pools.share_rewards:
        return own
    together = tuple(name for name, _, packages in own if not packages)
    alone = [kind for kind in own if kind[2]]
    return [("-".join(together) if len(together) == 1 else "rewards", together, ()), *alone] if together else alone


class Worker:
    """The process of an actor or of a reward server. `run` blocks; the other calls answer beside it.

    When the process dies, Ray starts another one and calls `run` again; what the dead one held is claimed by whoever
    is first once its lease ends.
    """

    def __init__(self, place: Place, config: RunConfig, connection: Connection) -> None:
        logs.configure(place.name, connection.run)
        use_threads(place.threads)
        meter, self._metrics = serve_metrics()
        self._broker, self._stop = connection.open(), threading.Event()
        self._loops: list[Actor | RewardServer]
        if place.role == "actor":
            weights = ObjectStoreSubscriber(find_directory(connection.directory))
            device = "cuda" if place.gpus else "cpu"
            self._loops = [build_actor(config, self._broker, weights, meter, name=place.name, device=device)]
        else:
            device = "cuda" if place.gpus else "cpu"
            self._loops = [
                build_reward_server(config, reward, self._broker, meter, name=f"{place.name}.{i}", device=device)
                for reward in place.rewards
                for i in range(config.pools.reward_loops)
            ]

    def run(self) -> None:
        """Work until `stop`. A loop that fails stops the others, and its error is raised."""
        with ThreadPoolExecutor(len(self._loops)) as threads:
            ends = [threads.submit(loop.run, self._stop.is_set) for loop in self._loops]
            wait(ends, return_when=FIRST_EXCEPTION)
            self._stop.set()
            for end in ends:
                end.result()
        self._broker.close()

    def stop(self) -> None:
        """Finish what is held, hand back the rest, return from `run`."""
        self._stop.set()

    def describe(self) -> dict[str, Any]:
        """{"pid", "metrics": "HOST:PORT", "spent": seconds by part, summed over the loops, "trouble": "" or a reason}."""
        spent: Counter[str] = Counter()
        for loop in self._loops:
            spent.update(loop.spent)
        troubles = [loop.trouble for loop in self._loops if isinstance(loop, RewardServer) and loop.trouble]
        trouble = troubles[0] if troubles else ""
        return {"pid": os.getpid(), "metrics": self._metrics, "spent": dict(spent), "trouble": trouble}


class Pools:
    """Every worker of the run, seen from the driver. Only the driver's main thread calls this."""

    def __init__(
        self, config: RunConfig, connection: Connection, wanted: list[Place], on_event: Callable[[str], None]
    ) -> None:
        """``on_event`` hears of workers that died and were replaced."""
        self._config, self._connection, self._on_event = config, connection, on_event
        self._places = {place.name: place for place in wanted}
        self._workers: dict[str, Any] = {}
        self._running: dict[Any, str] = {}  # future of `run` -> worker
        self._asked: dict[Any, str] = {}  # future of `describe` -> worker
        self._known: dict[str, dict[str, Any]] = {}  # worker -> its newest description

    def start(self) -> None:
        """Ask Ray for every worker; returns at once."""
        import ray

        for place in self._places.values():
            name = f"{self._connection.run}-{place.name}"
            resources = {"num_cpus": place.cpus, "num_gpus": place.gpus}
            options = {**RESTARTS, **resources, **runtime_env(place.packages), "name": name}
            worker = ray.remote(**options)(Worker).remote(place, self._config, self._connection)
            self._workers[place.name] = worker
            self._running[worker.run.remote()] = place.name

    def look(self) -> None:
        """Learn what the workers say of themselves. Raises `DroverError` when one failed for good."""
        for future in _ready(self._running):
            self._raise_failure(self._running.pop(future), future)
        for future in _ready(self._asked):
            self._note(self._asked.pop(future), future)
        waiting = set(self._asked.values())
        for name, worker in self._workers.items():
            if name not in waiting:
                self._asked[worker.describe.remote()] = name

    def preparing(self) -> list[str]:
        """Rewards of which no worker has answered yet, among those in an environment of their own: it takes minutes."""
        own = {place.rewards for place in self._places.values() if place.packages}
        return sorted(name for names in own - {self._places[known].rewards for known in self._known} for name in names)

    def scalars(self) -> dict[str, float]:
        """``pool/...`` sizes and ``account/ROLE/PART`` seconds, summed over each pool."""
        found = {pool: 0.0 for place in self._places.values() for pool in place.pools}
        for name, known in self._known.items():
            place = self._places[name]
            for pool in place.pools:
                found[pool] += 1
            for part, seconds in known["spent"].items():
                key = f"account/{place.role}/{part}"
                found[key] = found.get(key, 0.0) + seconds
        return found

    def targets(self) -> dict[str, str]:
        """Worker -> HOST:PORT of its metrics."""
        return {name: known["metrics"] for name, known in self._known.items()}

    def troubles(self) -> list[str]:
        """What rewards could not do, for whoever has to explain a failure: asks every worker once more."""
        import ray

        asked = {worker.describe.remote(): name for name, worker in self._workers.items()}
        ray.wait(list(asked), num_returns=len(asked), timeout=DESCRIBE_S)
        for future in _ready(asked):
            self._note(asked[future], future)
        return [f"{name}: {known['trouble']}" for name, known in self._known.items() if known["trouble"]]

    def stop(self) -> None:
        """Let every worker finish what it holds, then end it."""
        import ray

        for worker in self._workers.values():
            worker.stop.remote()
        # One whose environment is still being built holds nothing.
        ends = [end for end, name in self._running.items() if name in self._known or not self._places[name].packages]
        if ends:
            ray.wait(ends, num_returns=len(ends), timeout=STOP_S)
        for worker in self._workers.values():
            ray.kill(worker)

    def _note(self, name: str, future: Any) -> None:
        import ray

        try:
            found = ray.get(future)
        except ray.exceptions.RayError:  # it is being restarted; the next look finds its successor
            return
        if self._known.get(name, found)["pid"] != found["pid"]:
            self._on_event(f"{name} died and was replaced")
        self._known[name] = found

    def _raise_failure(self, name: str, future: Any) -> None:
        import ray

        try:
            ray.get(future)
        except ray.exceptions.RuntimeEnvSetupError as error:
            raise failure(", ".join(self._places[name].rewards), str(error)) from error
        except ray.exceptions.RayError as error:
            raise DroverError(f"{name} failed: {cause(error)}") from error


def _ready(futures: dict[Any, str]) -> list[Any]:
    import ray

    return ray.wait(list(futures), num_returns=len(futures), timeout=0)[0] if futures else []


def cause(error: BaseException) -> str:
    """The innermost reason in words, without Ray's wrapping."""
    failures = getattr(error, "worker_failures", None)
    inner = next(iter(failures.values())) if failures else getattr(error, "cause", None) or error.__cause__
    if isinstance(inner, BaseException) and inner is not error:
        return cause(inner)
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
