"""The process of an actor or of a reward server, and the pools of such processes."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import Counter
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Literal

from drover.actors.worker import Actor, Role
from drover.common import log as logs
from drover.common.errors import CutOff
from drover.common.protocols import Delivery
from drover.common.weights.object_store import ObjectStoreSubscriber, find_directory
from drover.deploy.cluster.connection import Connection, serve_metrics
from drover.deploy.cluster.environments import packages_of
from drover.deploy.cluster.own_log import own_log
from drover.deploy.config import RunConfig
from drover.deploy.roles import build_actor, build_reward_server, use_threads
from drover.deploy.user_file import Portable
from drover.reward_servers.serving.server import RewardServer

ROLLOUT, EVALUATION = "rollout", "evaluation"
FINISHES_S, LEAVES_S = 3.0, 4.5  # seconds from SIGTERM until messages are handed back, and until the process ends
REPLACE = 1  # an exit code that makes Ray start another process
REWARD_CPUS = 0.1  # CPUs that a reward server requests from Ray; it sleeps most of the time

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool: workers of one role, or of one or more rewards, with their number at the start and the needs of each."""

    name: str  # "rollout", "evaluation", the name of a reward, or "rewards" for rewards that share processes
    role: Role | Literal["reward"]
    size: int
    threads: int
    gpus: float
    rewards: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()  # of an environment of its own; empty: it uses drover's environment

    def place(self, number: int) -> Place:
        """Return the place of the worker with that number, from 0."""
        return Place(f"{self.name if self.role == 'reward' else self.role}-{number}", self)

    @property
    def cpus(self) -> float:
        """CPUs that each worker requests from Ray."""
        return REWARD_CPUS if self.role == "reward" else float(self.threads)

    @property
    def group(self) -> str:
        """The custom resource that marks this pool's nodes, in a cluster that has such nodes."""
        return "reward" if self.role == "reward" else ROLLOUT

    @property
    def scalars(self) -> tuple[str, ...]:
        """The names under which reports count its workers."""
        return tuple(f"pool/reward/{name}" for name in self.rewards) or (f"pool/{self.name}",)


@dataclass(frozen=True, slots=True)
class Place:
    """One place in a pool, which one process at a time fills: a replaced worker keeps the name."""

    name: str
    pool: Pool


def pools_of(config: RunConfig, *, gpus: float) -> list[Pool]:
    """Return the run's pools. Rewards come first: they have the least to load. ``gpus``: GPUs of each actor or evaluator."""
    pools = config.pools
    rewards = [
        Pool(name, "reward", pools.reward_servers, 1, pools.reward_gpus, names, packages)
        for name, names, packages in _served(config)
    ]
    actors = Pool(ROLLOUT, "actor", pools.actors, pools.actor_threads, gpus)
    spare = Pool(EVALUATION, "evaluator", pools.evaluators, pools.actor_threads, gpus)
    return [*rewards, *(pool for pool in (actors, spare) if pool.size)]


Served = tuple[str, tuple[str, ...], tuple[str, ...]]


def _served(config: RunConfig) -> list[Served]:
    """Return (name, rewards, packages) of each pool of reward servers."""
    own: list[Served] = [(reward.name, (reward.name,), packages_of(reward)) for reward in config.rewards]
    if not config.pools.share_rewards:
        return own
    together = tuple(name for name, _, packages in own if not packages)
    alone = [kind for kind in own if kind[2]]
    return [("-".join(together) if len(together) == 1 else "rewards", together, ()), *alone] if together else alone


class Worker:
    """The Ray actor in whose process an actor or a reward server runs. `run` blocks; other calls are answered meanwhile.

    When the process dies, Ray starts another one and calls `run` again. Once the leases of the dead process end, the next
    worker that takes messages claims its unacknowledged ones.
    """

    def __init__(self, place: Place, given: Portable[RunConfig], connection: Connection) -> None:
        pool, config = place.pool, given.value
        logs.configure(place.name, connection.run)
        use_threads(pool.threads)
        meter, self._metrics = serve_metrics(connection.metrics_host)
        self._broker, self._stop = connection.open(), threading.Event()
        self._preempted, self._done = False, threading.Event()
        # Ray makes actors in the main thread, so this is allowed. Ray's own handler would wait for `run` without end.
        signal.signal(signal.SIGTERM, lambda *_: self._preempt())
        self._loops: list[Actor | RewardServer[Delivery]]
        device = "cuda" if pool.gpus else "cpu"
        if pool.role != "reward":
            weights = ObjectStoreSubscriber(find_directory(connection.directory))
            self._loops = [
                build_actor(config, self._broker, weights, meter, name=place.name, device=device, role=pool.role)
            ]
        else:
            self._loops = [
                build_reward_server(config, reward, self._broker, meter, name=f"{place.name}.{i}", device=device)
                for reward in pool.rewards
                for i in range(config.pools.reward_loops)
            ]

    def run(self) -> None:
        """Work until `stop`. A loop that fails stops the others, and its error is raised.

        A process that Ray shall replace exits in here, because Ray takes a return for the end of the work.
        """
        try:
            self._run()
        except CutOff as error:
            log.error("cut off from Redis, leaving it to another: %s", error)
            os._exit(REPLACE)
        self._done.set()
        if self._preempted:
            threading.Event().wait()

    def _run(self) -> None:
        with ThreadPoolExecutor(len(self._loops)) as threads:
            ends = [threads.submit(loop.run, self._stop.is_set) for loop in self._loops]
            wait(ends, return_when=FIRST_EXCEPTION)
            self._stop.set()
            for end in ends:
                end.result()
        self._broker.close()

    def _preempt(self) -> None:
        """Leave on SIGTERM, before the machine goes: finish the messages in hand, or hand them back in time.

        Ray then starts another worker.
        """
        self._preempted = True
        self._stop.set()
        threading.Thread(target=self._leave, name="preempted", daemon=True).start()

    def _leave(self) -> None:
        threading.Timer(LEAVES_S, os._exit, [REPLACE]).start()  # even if a loop hangs
        self._done.wait(FINISHES_S)
        self._broker.close()
        os._exit(REPLACE)

    def stop(self) -> None:
        """Let `run` finish the messages in hand, hand back the others, and return."""
        self._stop.set()

    def describe(self) -> dict[str, Any]:
        """Describe this process to the driver.

        Returns {"pid", "node", "metrics": "HOST:PORT", "log": path on its node, "spent": seconds by reward ("" for an actor)
        and by part, summed over loops, "trouble": "" or a reason, "call_s": seconds that the longest call of a reward has
        taken so far, 0 between calls}.
        """
        import ray

        spent: dict[str, Counter[str]] = {}
        for loop in self._loops:
            spent.setdefault(loop.reward if isinstance(loop, RewardServer) else "", Counter()).update(loop.spent)
        servers = [loop for loop in self._loops if isinstance(loop, RewardServer)]
        troubles = [server.trouble for server in servers if server.trouble]
        return {
            "pid": os.getpid(),
            "node": ray.get_runtime_context().get_node_id(),
            "metrics": self._metrics,
            "log": own_log(),
            "spent": {kind: dict(parts) for kind, parts in spent.items()},
            "trouble": troubles[0] if troubles else "",
            "call_s": max((server.call_s for server in servers), default=0.0),
        }
