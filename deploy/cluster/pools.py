"""The pools of actors and reward servers as Ray actors: placed, watched, resized, replaced when they die or hang, stopped."""

from __future__ import annotations

import logging
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
from drover.deploy.cluster.discovery import Endpoint
from drover.deploy.cluster.environments import BUILD_S, failure, runtime_env
from drover.deploy.cluster.worker import Place, Pool, Worker
from drover.deploy.config import RunConfig
from drover.deploy.run_folder.run_log import last_lines
from drover.deploy.user_file import Portable

DESCRIBE_S = 5.0  # what workers get to answer a last question
STOP_S = 15.0  # what workers get to finish what they hold
WEDGED_S = 20.0  # a worker that was well and has not answered for so long is replaced
DEAD_S = 60.0  # a pool that was well and of which no worker has answered for so long ends the run,
DEAD_STARTS = 3  # or for as many times what it took to start: a large model takes minutes to load again
LATE_S = 60.0  # a worker that is not up after so long is told of: there may be no place for it
LONG_CALL = 5  # a reward's call that takes a fifth of the silence that ends a run is told of, once a process
NODE_SHARE = 0.001  # of a node's mark: it says where to be, not how many fit
log = logging.getLogger(__name__)
OURS = re.compile(r"^drover\.common\.errors\.\w+: ")  # how Python begins the last line of a traceback of ours
RESTARTS: dict[str, Any] = {"max_restarts": -1, "max_task_retries": -1, "max_concurrency": 2}


@dataclass(slots=True)
class _Member:
    """One worker as the driver knows it."""

    place: Place
    handle: Any
    end: Any  # future of its `run`
    began_s: float  # when Ray was asked for it
    asked: Any = None  # future of its `describe`
    asked_s: float = 0.0
    known: dict[str, Any] = field(default_factory=dict)  # its newest description
    answering: bool = False  # it has answered since it last (re)started
    late: bool = False  # it has been told that this one is not up
    slow: bool = False  # it has been told that a call of this one takes long
    leaves_by_s: float | None = None  # told to go; ended by force then, unless it answers until

    @property
    def active(self) -> bool:
        return self.leaves_by_s is None


class Pools:
    """Every worker of the run, seen from the driver. Only the driver's main thread calls this."""

    def __init__(
        self,
        config: RunConfig,
        connection: Connection,
        pools: Sequence[Pool],
        *,
        claim_cpus: bool,
        on_event: Callable[[str], None],
    ) -> None:
        """``claim_cpus``: each worker has CPUs of its own, and waits until Ray has them free. ``on_event`` hears of
        workers that came, went, or died and were replaced.
        """
        self._claim_cpus = claim_cpus
        self._config, self._connection, self._on_event = config, connection, on_event
        self._pools = {pool.name: pool for pool in pools}
        self._members: dict[str, _Member] = {}
        self._marks: set[str] = set()  # node groups that the cluster has
        self._started_s = 0.0
        self._heard_s: dict[str, float] = {}  # pool -> when one of its workers last answered, once one has
        self._patience_s: dict[str, float] = {}  # pool -> silence after which it is dead

    def start(self) -> None:
        """Ask Ray for every worker; returns at once."""
        import ray

        self._marks, self._started_s = set(ray.cluster_resources()), time.monotonic()
        for pool in self._pools.values():
            for number in range(pool.size):
                self._add(pool.place(number))

    # ------------------------------------------------------------------------------------------- size

    def sizes(self) -> dict[str, int]:
        """Pool -> workers that are or will be there."""
        return {name: len(self._active(name)) for name in self._pools}

    def resize(self, sizes: Mapping[str, int]) -> None:
        """Start or stop workers. One that leaves finishes what it holds and hands back the rest: nothing is lost."""
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
        """The place of the lowest number that no worker has, one on its way out included."""
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
        """Learn what the workers say of themselves. Raises `DroverError` when one failed, or a pool is dead, for good."""
        now_s = time.monotonic()
        ended = _ready([member.end for member in self._members.values()])
        for member in list(self._members.values()):
            if member.end in ended:
                self._bury(member)
            elif member.leaves_by_s is not None and now_s > member.leaves_by_s:
                self._remove(member)  # what it still holds is claimed by others when its lease ends
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
        """Whether all that the pool's workers ran on has left the cluster: then nodes have to come back before workers can."""
        import ray

        ran = {member.known["node"] for member in self._active(pool) if member.known}
        return bool(ran) and ran.isdisjoint(node["NodeID"] for node in ray.nodes() if node["Alive"])

    def _tell_late(self, now_s: float) -> None:
        """Say once of each worker that it is not up, and what it asks for. Its environment may take long to build."""
        for pool in self._pools.values():
            away = [member for member in self._active(pool.name) if not member.known]
            late_s = BUILD_S if pool.packages and pool.name not in self._heard_s else LATE_S
            if not any(now_s - m.began_s > late_s and not m.late for m in away):
                continue
            for member in away:  # those that were asked for a moment later too: one line, not one each
                member.late = True
            asked = counted(pool.cpus, "CPU") if self._claim_cpus else "no CPU of its own"
            where = f" on a node marked {pool.group}" if pool.group in self._marks else ""
            self._on_event(
                f"{len(away)} of {len(self._active(pool.name))} workers of the pool {pool.name} are not up after "
                f"{late_s:.0f} s; each asks for {asked} and {counted(pool.gpus, 'GPU')}{where}; `ray status` says what there is"
            )

    def preparing(self) -> list[str]:
        """Rewards of which no worker has answered yet, among those in an environment of their own: it takes minutes."""
        own = [pool for pool in self._pools.values() if pool.packages and pool.name not in self._heard_s]
        return sorted(name for pool in own for name in pool.rewards)

    def scalars(self) -> dict[str, float]:
        """``pool/...`` sizes and ``account/ROLE/PART`` seconds, summed over each pool."""
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
        """Pool -> worker -> reward ("" for an actor) -> seconds by part, of the workers that have said so and are to stay."""
        return {
            name: {member.place.name: member.known["spent"] for member in self._active(name) if member.known}
            for name in self._pools
        }

    def endpoints(self) -> dict[str, Endpoint]:
        """Worker -> where its metrics are and what is set aside for it."""
        known = {name: member for name, member in self._members.items() if member.known}
        pools = {name: member.place.pool for name, member in known.items()}
        return {
            name: Endpoint(pools[name].role, member.known["metrics"], pools[name].cpus, pools[name].gpus)
            for name, member in known.items()
        }

    def troubles(self) -> list[str]:
        """The failures and the long calls of rewards, to explain a run's failure with: asks every worker once more."""
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
                self._note_log(member)
        return told

    def stop(self) -> None:
        """Let every worker finish what it holds, then end it."""
        import ray

        for member in self._members.values():
            member.handle.stop.remote()
        # One that is not up yet, because it waits for a place or for its environment, holds nothing.
        ends = [member.end for member in self._members.values() if member.known]
        if ends:
            ray.wait(ends, num_returns=len(ends), timeout=STOP_S)
        for member in self._members.values():
            ray.kill(member.handle)

    def _ask(self, member: _Member, now_s: float) -> None:
        """Take the answer to the last question, if there is one, and ask again; end a worker that does not answer."""
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
            if not member.active:  # it died on its way out, and its successor knows nothing of leaving
                self._remove(member)
                return
            self._on_event(f"{member.place.name} died and was replaced")
            self._note_log(member)
            member.slow = False
        elif self._long_call(found) and not member.slow:
            member.slow = True
            self._on_event(f"{member.place.name}: {self._long_call(found)}")
        member.known, member.answering = found, True
        if member.leaves_by_s is not None:
            member.leaves_by_s = now_s + STOP_S  # what it works on may take long; as long as it answers, it may
        pool = member.place.pool.name
        self._patience_s.setdefault(pool, max(DEAD_S, DEAD_STARTS * (now_s - self._started_s)))
        self._heard_s[pool] = now_s

    def _long_call(self, known: Mapping[str, Any]) -> str:
        """In words; "" where no call takes long."""
        if known["call_s"] <= self._config.stall_s / LONG_CALL:
            return ""
        taken_s = known["call_s"]
        return (
            f"one call has taken {taken_s:.0f} s so far (its log: {known['log']}); if it hangs, set reward_deadline_s"
        )

    def _note_log(self, member: _Member) -> None:
        """Keep the end of a worker's log, where it lies on this node; elsewhere its path."""
        name, path = member.place.name, member.known["log"]
        log.warning("%s wrote to %s last:%s", name, path or "a log that is not known", last_lines(path))

    def _end_wedged(self, member: _Member) -> None:
        """Kill the process where it is: one that hangs does not hear Ray either. Ray then starts another."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._on_event(f"{member.place.name} has not answered for {WEDGED_S:.0f} s and is replaced")
        there = NodeAffinitySchedulingStrategy(member.known["node"], soft=False)
        ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_kill).remote(member.known["pid"])
        member.answering = False

    def _bury(self, member: _Member) -> None:
        """Its `run` has ended: because it was told to, or by a failure that restarts do not mend."""
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
    """Not retried when the worker dies: then the failure says so, which a retry would hide."""
    return handle.describe.options(max_task_retries=0).remote()


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _number(place: Place) -> int:
    return int(place.name.rpartition("-")[2])


def _ready(futures: list[Any]) -> set[Any]:
    import ray

    return set(ray.wait(futures, num_returns=len(futures), timeout=0)[0]) if futures else set()


def cause(error: BaseException) -> str:
    """The innermost reason in words, without Ray's wrapping."""
    failures = getattr(error, "worker_failures", None)
    inner = next(iter(failures.values())) if failures else getattr(error, "cause", None) or error.__cause__
    if isinstance(inner, BaseException) and inner is not error:
        return cause(inner)
    lines = str(error).strip().splitlines()
    return OURS.sub("", lines[-1]) if lines else type(error).__name__
