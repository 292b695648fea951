"""Runs the pools of actors and reward servers as Ray actors: starts, checks, resizes, replaces and stops the workers."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from drover.common.errors import DroverError
from drover.common.words import counted
from drover.deploy.cluster.connection import Connection
from drover.deploy.cluster.discovery import MetricsEndpoint
from drover.deploy.cluster.environments import BUILD_S, failure, runtime_env
from drover.deploy.cluster.worker import Place, Pool, Worker
from drover.deploy.config import RunConfig
from drover.deploy.run_folder.run_log import keep_end
from drover.deploy.user_file import Portable

DESCRIBE_S = 5.0  # time for workers to answer when a failure is explained
STOP_S = 15.0  # time for workers to finish the messages in hand
WEDGED_S = 20.0  # a worker that answered before and is silent for so long is replaced
DEAD_S = 60.0  # the run ends if all workers of a pool that answered before are silent for so long,
DEAD_STARTS = 3  # or for this many times the time of its start: a large model takes minutes to load again
LATE_S = 60.0  # a worker that is not up after so long is reported: there may be no room for it
LONG_CALL = 5  # a reward's call of 1/5 of `stall_s` is reported, once per process
NODE_SHARE = 0.001  # of a node's mark, which selects the nodes and must not limit the number of workers
OURS = re.compile(r"^drover\.common\.errors\.\w+: ")  # the start of the last line of a traceback of our errors
RESTARTS: dict[str, Any] = {"max_restarts": -1, "max_task_retries": -1, "max_concurrency": 2}


@dataclass(slots=True)
class _Member:
    """The driver's record of one worker."""

    place: Place
    handle: Any
    end: Any  # future of its `run`
    began_s: float  # when it was requested from Ray
    asked: Any = None  # future of its `describe`
    asked_s: float = 0.0
    known: dict[str, Any] = field(default_factory=dict)  # its newest description
    answering: bool = False  # it has answered since it last (re)started
    late: bool = False  # an event has reported that it is not up
    slow: bool = False  # an event has reported its long call
    leaves_by_s: float | None = None  # told to leave; killed at this time, which each answer moves on

    @property
    def active(self) -> bool:
        return self.leaves_by_s is None


class WorkerPools:
    """All workers of the run, seen from the driver. Only the driver's main thread calls this."""

    def __init__(
        self,
        config: RunConfig,
        connection: Connection,
        pools: Sequence[Pool],
        *,
        claim_cpus: bool,
        on_event: Callable[[str], None],
    ) -> None:
        """``claim_cpus``: each worker has CPUs of its own, and waits until Ray has them free. ``on_event`` is called with a
        text for each worker that joins, leaves, is replaced, is late, or has a long call.
        """
        self._claim_cpus = claim_cpus
        self._config, self._connection, self._on_event = config, connection, on_event
        self._pools = {pool.name: pool for pool in pools}
        self._members: dict[str, _Member] = {}
        self._marks: set[str] = set()  # node groups that the cluster has
        self._started_s = 0.0
        self._heard_s: dict[str, float] = {}  # pool -> time of its workers' newest answer
        self._patience_s: dict[str, float] = {}  # pool -> silence after which it is dead

    def start(self) -> None:
        """Request every worker from Ray; returns at once."""
        import ray

        self._marks, self._started_s = set(ray.cluster_resources()), time.monotonic()
        for pool in self._pools.values():
            for number in range(pool.size):
                self._add(pool.place(number))

    # ------------------------------------------------------------------------------------------- size

    def sizes(self) -> dict[str, int]:
        """Return pool -> number of its workers, with those that are still starting and without those that leave."""
        return {name: len(self._active(name)) for name in self._pools}

    def resize(self, sizes: Mapping[str, int]) -> None:
        """Start or stop workers. A worker that leaves finishes the messages in hand and hands back the others."""
        for name, wanted in sizes.items():
            assert wanted >= 1, (name, wanted)
            mine = sorted(self._active(name), key=lambda member: _number(member.place))
            for member in mine[wanted:]:
                self._on_event(f"{member.place.name} leaves: {name} goes from {len(mine)} to {wanted}")
                member.leaves_by_s = time.monotonic() + STOP_S
                member.handle.stop.remote()
            for _ in range(wanted - len(mine)):
                place = self._vacant(self._pools[name])
                self._on_event(f"{place.name} joins: {name} goes from {len(mine)} to {wanted}")
                self._add(place)

    def _active(self, pool: str) -> list[_Member]:
        return [member for member in self._members.values() if member.active and member.place.pool.name == pool]

    def _vacant(self, pool: Pool) -> Place:
        """Return the place of the lowest number that no worker has, nor one that is leaving."""
        number = 0
        while (place := pool.place(number)).name in self._members:
            number += 1
        return place

    def _add(self, place: Place) -> None:
        import ray

        pool = place.pool
        options = {
            **RESTARTS,
            "num_cpus": pool.cpus if self._claim_cpus else 0,
            "num_gpus": pool.gpus,
            "name": f"{self._connection.run}-{place.name}",
            **({"resources": {pool.group: NODE_SHARE}} if pool.group in self._marks else {}),
            **runtime_env(pool.packages),
        }
        handle = ray.remote(**options)(Worker).remote(place, Portable(self._config), self._connection)
        self._members[place.name] = _Member(place, handle, handle.run.remote(), time.monotonic())

    # ------------------------------------------------------------------------------------------ watch

    def look(self) -> None:
        """Ask all workers for their descriptions, and remove or replace dead ones.

        Raises `DroverError` when a worker failed beyond restarts, or no worker of a pool answers any more.
        """
        now_s = time.monotonic()
        ended = _ready([member.end for member in self._members.values()])
        for member in list(self._members.values()):
            if member.end in ended:
                self._bury(member)
            elif member.leaves_by_s is not None and now_s > member.leaves_by_s:
                self._remove(member)  # others claim its messages when their leases end
            else:
                self._ask(member, now_s)
        self._tell_late(now_s)
        for name, heard_s in self._heard_s.items():
            silent_s, patience_s = now_s - heard_s, self._patience_s[name]
            if silent_s > patience_s and (silent_s > 2 * patience_s or not self._nodes_are_gone(name)):
                raise DroverError(
                    f"no worker of the pool {name!r} has answered for {silent_s:.0f} s: they die as often as they are "
                    "replaced, or there is no node left for them; look at their logs and at `ray status`"
                )

    def _nodes_are_gone(self, pool: str) -> bool:
        """Return whether all nodes of the pool's workers have left the cluster: workers must then wait for nodes."""
        import ray

        ran = {member.known["node"] for member in self._active(pool) if member.known}
        return bool(ran) and ran.isdisjoint(node["NodeID"] for node in ray.nodes() if node["Alive"])

    def _tell_late(self, now_s: float) -> None:
        """Report each worker once that is not up in time, with its request. An environment of its own takes long to build."""
        for pool in self._pools.values():
            away = [member for member in self._active(pool.name) if not member.known]
            late_s = BUILD_S if pool.packages and pool.name not in self._heard_s else LATE_S
            if not any(now_s - m.began_s > late_s and not m.late for m in away):
                continue
            for member in away:  # also those requested a moment later, so that there is one event and not many
                member.late = True
            asked = counted(pool.cpus, "CPU") if self._claim_cpus else "no CPU of its own"
            where = f" on a node marked {pool.group}" if pool.group in self._marks else ""
            self._on_event(
                f"{len(away)} of {len(self._active(pool.name))} workers of the pool {pool.name} are not up after "
                f"{late_s:.0f} s; each asks for {asked} and {counted(pool.gpus, 'GPU')}{where}; `ray status` shows free resources"
            )

    def preparing(self) -> list[str]:
        """Return the rewards with an environment of their own whose workers have not answered yet: building takes minutes."""
        own = [pool for pool in self._pools.values() if pool.packages and pool.name not in self._heard_s]
        return sorted(name for pool in own for name in pool.rewards)

    def scalars(self) -> dict[str, float]:
        """Return ``pool/...`` sizes and ``account/ROLE/PART`` seconds, summed over each pool."""
        found = {name: 0.0 for pool in self._pools.values() for name in pool.scalars}
        for member in self._members.values():
            if not member.known:
                continue
            for name in member.place.pool.scalars:
                found[name] += 1
            for parts in member.known["spent"].values():
                for part, seconds in parts.items():
                    key = f"account/{member.place.pool.role}/{part}"
                    found[key] = found.get(key, 0.0) + seconds
        return found

    def spent(self) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
        """Return pool -> worker -> reward ("" for an actor) -> seconds by part, of workers that have answered and stay."""
        return {
            name: {member.place.name: member.known["spent"] for member in self._active(name) if member.known}
            for name in self._pools
        }

    def endpoints(self) -> dict[str, MetricsEndpoint]:
        """Return worker -> its metrics endpoint, of the workers that have answered."""
        known = {name: member for name, member in self._members.items() if member.known}
        pools = {name: member.place.pool for name, member in known.items()}
        return {
            name: MetricsEndpoint(pools[name].role, member.known["metrics"], pools[name].cpus, pools[name].gpus)
            for name, member in known.items()
        }

    def troubles(self) -> list[str]:
        """Ask every worker once more; return messages about failing rewards and long calls, which explain a failed run."""
        import ray

        asked = {_describe(member.handle): member for member in self._members.values()}
        ray.wait(list(asked), num_returns=len(asked), timeout=DESCRIBE_S)
        for future in _ready(list(asked)):
            with suppress(ray.exceptions.RayError):  # it has just died
                asked[future].known = ray.get(future)
        told = []
        for name, member in self._members.items():
            trouble = member.known and (member.known["trouble"] or self._long_call(member.known))
            if trouble:
                told.append(f"{name}: {trouble}")
                keep_end(name, member.known["log"])
        return told

    def stop(self) -> None:
        """Let every worker finish the messages in hand, then end it."""
        import ray

        for member in self._members.values():
            member.handle.stop.remote()
        # A worker that is not up yet, because it waits for room or for its environment, has no messages.
        ends = [member.end for member in self._members.values() if member.known]
        if ends:
            ray.wait(ends, num_returns=len(ends), timeout=STOP_S)
        for member in self._members.values():
            ray.kill(member.handle)

    def _ask(self, member: _Member, now_s: float) -> None:
        """Read the worker's answer if it has come and ask again; kill a worker that does not answer."""
        if member.asked is not None and not _ready([member.asked]):
            if member.answering and now_s - member.asked_s > WEDGED_S:
                self._end_wedged(member)
            return
        if member.asked is not None:
            self._note(member, now_s)
        member.asked, member.asked_s = _describe(member.handle), now_s

    def _note(self, member: _Member, now_s: float) -> None:
        import ray

        try:
            found = ray.get(member.asked)
        except ray.exceptions.RayError:  # it is being restarted
            member.answering = False
            return
        if member.known.get("pid", found["pid"]) != found["pid"]:
            if not member.active:  # it died while leaving, and the new process does not know that it shall leave
                self._remove(member)
                return
            self._on_event(f"{member.place.name} died and was replaced")
            keep_end(member.place.name, member.known["log"])
            member.slow = False
        elif self._long_call(found) and not member.slow:
            member.slow = True
            self._on_event(f"{member.place.name}: {self._long_call(found)}")
        member.known, member.answering = found, True
        if member.leaves_by_s is not None:
            member.leaves_by_s = now_s + STOP_S  # while it answers, its work may take long
        pool = member.place.pool.name
        self._patience_s.setdefault(pool, max(DEAD_S, DEAD_STARTS * (now_s - self._started_s)))
        self._heard_s[pool] = now_s

    def _long_call(self, known: Mapping[str, Any]) -> str:
        """Return a message about the reward's call that takes long; "" for none."""
        if known["call_s"] <= self._config.stall_s / LONG_CALL:
            return ""
        taken_s = known["call_s"]
        return (
            f"one call has taken {taken_s:.0f} s so far (its log: {known['log']}); if it hangs, set reward_deadline_s"
        )

    def _end_wedged(self, member: _Member) -> None:
        """Kill the process on its node, because a process that hangs does not answer Ray either. Ray then starts another."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._on_event(f"{member.place.name} has not answered for {WEDGED_S:.0f} s and is replaced")
        there = NodeAffinitySchedulingStrategy(member.known["node"], soft=False)
        ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_kill).remote(member.known["pid"])
        member.answering = False

    def _bury(self, member: _Member) -> None:
        """Remove a worker whose `run` has ended as told. Raises `DroverError` if it ended by a failure or untold."""
        import ray

        pool = member.place.pool
        try:
            ray.get(member.end)
        except ray.exceptions.RuntimeEnvSetupError as error:
            raise failure(", ".join(pool.rewards), str(error)) from error
        except ray.exceptions.RayError as error:
            if member.active:
                raise DroverError(f"{member.place.name} failed: {cause(error)}") from error
        if member.active:
            raise DroverError(f"{member.place.name} stopped working without being told to")
        self._remove(member)

    def _remove(self, member: _Member) -> None:
        import ray

        ray.kill(member.handle)
        del self._members[member.place.name]


def _describe(handle: Any) -> Any:
    """Ask a worker for its description. Ray does not retry the call: a retry would hide that the worker died."""
    return handle.describe.options(max_task_retries=0).remote()


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _number(place: Place) -> int:
    return int(place.name.rpartition("-")[2])


def _ready(futures: list[Any]) -> set[Any]:
    import ray

    return set(ray.wait(futures, num_returns=len(futures), timeout=0)[0]) if futures else set()


def cause(error: BaseException) -> str:
    """Return the message of the innermost error, without Ray's wrapping."""
    failures = getattr(error, "worker_failures", None)
    inner = next(iter(failures.values())) if failures else getattr(error, "cause", None) or error.__cause__
    if isinstance(inner, BaseException) and inner is not error:
        return cause(inner)
    lines = str(error).strip().splitlines()
    return OURS.sub("", lines[-1]) if lines else type(error).__name__
