"""Predicts the pace of a run at given pool sizes: simulates the service as queues, event by event. Pure; reads no file.

A group waits for an actor, is sampled, waits for a server of each of its rewards, and is done when all have answered. The
learner takes whole iterations, in order, and issues a new one for each that it has learned, so that ``max_lag + 1`` are
open. Without lag the roles take turns and their times add up; with much lag only the slowest role counts; the simulation
also covers the cases between. Times are means: no randomness, no time on the wire, and no two workers share a core.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

ROLLOUT, LEARNER = "rollout", "learner"
ITERATIONS = 90  # simulated iterations; enough for the turns of the tasks to repeat
FIRST = 30  # the iteration from which time and work are counted
FASTER = 0.9  # a role takes this share of its time when `limits` tests how far it limits the run

Sizes = Mapping[str, int]
"""``rollout`` and every reward -> workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a run that do not change while it goes on.

    Example: ``Shape(groups=4, samples=64, max_lag=1, rewards=(("point",),))``.
    """

    groups: int  # groups of an iteration
    samples: int  # samples of a group
    max_lag: int
    rewards: tuple[tuple[str, ...], ...]  # rewards of an iteration's groups; iterations take the entries in turn
    actor_groups: int = 1  # groups that an actor samples at once
    reward_groups: int = 1  # groups that a scoring call takes at most
    reward_loops: int = 1  # calls that a server makes side by side

    @property
    def names(self) -> list[str]:
        """All rewards, in the order of their first iteration."""
        return list(dict.fromkeys(name for some in self.rewards for name in some))


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """The seconds that one worker of each role needs."""

    rollout_s: float  # for a group
    load_s: float  # for new weights, in an actor
    rewards_s: Mapping[str, float]  # reward -> for a group
    learner_s: float  # for an iteration, publishing included

    def faster(self, role: str) -> Costs:
        """Return the costs with one role at `FASTER` of its time."""
        if role == LEARNER:
            return replace(self, learner_s=self.learner_s * FASTER)
        if role == ROLLOUT:
            return replace(self, rollout_s=self.rollout_s * FASTER, load_s=self.load_s * FASTER)
        return replace(self, rewards_s={**self.rewards_s, role: self.rewards_s[role] * FASTER})


@dataclass(frozen=True, slots=True)
class Forecast:
    """The predicted pace. ``busy``: role -> the share of its time that it works."""

    samples_per_s: float
    busy: Mapping[str, float]


def forecast(shape: Shape, costs: Costs, sizes: Sizes) -> Forecast:
    """Return the steady pace of the service at those sizes."""
    return _Service(shape, costs, sizes).run()


def limits(shape: Shape, costs: Costs, sizes: Sizes) -> dict[str, float]:
    """Return how far each role limits the run: the gain in pace when it gets quicker, as shares that sum to 1."""
    now = forecast(shape, costs, sizes).samples_per_s
    gains = {
        role: max(0.0, forecast(shape, costs.faster(role), sizes).samples_per_s / now - 1.0)
        for role in (ROLLOUT, *shape.names, LEARNER)
    }
    whole = sum(gains.values()) or 1.0
    return {role: gain / whole for role, gain in gains.items()}


def propose(shape: Shape, costs: Costs, budget: int) -> dict[str, int]:
    """Return the sizes with the highest predicted pace and at most ``budget`` workers; among nearly equal ones the smallest.

    ``budget`` is at least one worker for each role. The search starts from each role's share of the time that a group
    costs, and moves one worker at a time while that helps.
    """
    roles = [ROLLOUT, *shape.names]
    assert budget >= len(roles), (budget, roles)

    def pace(sizes: Sizes) -> float:
        return forecast(shape, costs, sizes).samples_per_s

    best = _shares({ROLLOUT: costs.rollout_s, **{name: costs.rewards_s[name] for name in shape.names}}, budget)
    while True:
        moves = [
            {**best, giver: best[giver] - 1, taker: best[taker] + 1}
            for giver in roles
            for taker in roles
            if giver != taker and best[giver] > 1
        ]
        better = max(moves, key=pace, default=best)
        if pace(better) <= pace(best) * 1.001:
            break
        best = better
    enough = 0.99 * pace(best)
    while fewer := [
        less for role in roles if best[role] > 1 and pace(less := {**best, role: best[role] - 1}) >= enough
    ]:
        best = max(fewer, key=pace)
    return best


def _shares(seconds: Mapping[str, float], budget: int) -> dict[str, int]:
    """Give each role one worker, and each further worker to the role with the most seconds per worker."""
    sizes = dict.fromkeys(seconds, 1)
    for _ in range(budget - len(sizes)):
        sizes[max(sizes, key=lambda role: seconds[role] / sizes[role])] += 1
    return sizes


# ----------------------------------------------------------------------------------------- the simulation


@dataclass(slots=True)
class _Group:
    iteration: int
    rewards: tuple[str, ...]
    missing: int


@dataclass(slots=True)
class _Station:
    """The workers of one role and their queue."""

    workers: int
    at_once: int
    queue: deque[_Group] = field(default_factory=deque)
    idle: deque[int] = field(default_factory=deque)  # workers, the longest idle first
    worked_s: float = 0.0

    def __post_init__(self) -> None:
        self.idle.extend(range(self.workers))

    def take(self) -> list[_Group]:
        return [self.queue.popleft() for _ in range(min(self.at_once, len(self.queue)))]


class _Service:
    """The simulation of one run."""

    def __init__(self, shape: Shape, costs: Costs, sizes: Sizes) -> None:
        self._shape, self._costs = shape, costs
        self._stations = {ROLLOUT: _Station(sizes[ROLLOUT], shape.actor_groups)}
        for name in shape.names:
            self._stations[name] = _Station(sizes[name] * shape.reward_loops, shape.reward_groups)
        self._loaded = [-1] * sizes[ROLLOUT]  # weight version of each actor
        self._missing: Counter[int] = Counter()  # groups that an iteration lacks
        self._issued = self._learned = 0
        self._learning = False
        self._now_s = 0.0
        self._ends: list[float] = []  # times at which iterations ended
        self._events: list[tuple[float, int, str, int, list[_Group]]] = []  # (when, order, station, worker, its groups)
        self._count = 0

    def run(self) -> Forecast:
        for _ in range(self._shape.max_lag + 1):
            self._issue()
        marks: dict[str, float] = {}
        while self._learned < ITERATIONS:
            self._now_s, _, station, worker, groups = heapq.heappop(self._events)
            self._finish(station, worker, groups)
            if self._learned == FIRST and not marks:
                marks = self._worked_s
        span_s = max(self._ends[-1] - self._ends[FIRST - 1], 1e-9)
        busy = {
            name: (self._worked_s[name] - marks[name]) / (span_s * station.workers)
            for name, station in self._stations.items()
        }
        iterations = ITERATIONS - FIRST
        busy[LEARNER] = iterations * self._costs.learner_s / span_s
        samples = iterations * self._shape.groups * self._shape.samples
        return Forecast(samples / span_s, {name: min(1.0, share) for name, share in busy.items()})

    @property
    def _worked_s(self) -> dict[str, float]:
        return {name: station.worked_s for name, station in self._stations.items()}

    def _issue(self) -> None:
        rewards = self._shape.rewards[self._issued % len(self._shape.rewards)]
        work = self._stations[ROLLOUT]
        work.queue.extend(_Group(self._issued, rewards, len(rewards)) for _ in range(self._shape.groups))
        self._missing[self._issued] = self._shape.groups
        self._issued += 1
        self._dispatch(ROLLOUT)

    def _dispatch(self, name: str) -> None:
        """Give waiting groups to idle workers."""
        station = self._stations[name]
        while station.queue and station.idle:
            worker, groups = station.idle.popleft(), station.take()
            if name == ROLLOUT:
                seconds = len(groups) * self._costs.rollout_s + self._costs.load_s * (
                    self._loaded[worker] < self._learned
                )
                self._loaded[worker] = self._learned
            else:
                seconds = len(groups) * self._costs.rewards_s[name]
            station.worked_s += seconds
            self._after(seconds, name, worker, groups)

    def _finish(self, name: str, worker: int, groups: list[_Group]) -> None:
        if name == LEARNER:
            self._learning = False
            self._learned += 1
            self._ends.append(self._now_s)
            self._issue()
        else:
            self._stations[name].idle.append(worker)
            for group in groups:
                self._pass_on(name, group)
            self._dispatch(name)
        if not self._learning and self._learned in self._missing and self._missing[self._learned] == 0:
            self._learning = True
            self._after(self._costs.learner_s, LEARNER, 0, [])

    def _pass_on(self, name: str, group: _Group) -> None:
        if name == ROLLOUT and group.rewards:
            for reward in group.rewards:
                self._stations[reward].queue.append(group)
                self._dispatch(reward)
            return
        group.missing -= 1
        if group.missing <= 0:
            self._missing[group.iteration] -= 1

    def _after(self, seconds: float, name: str, worker: int, groups: list[_Group]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self._now_s + seconds, self._count, name, worker, groups))
