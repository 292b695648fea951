"""Sizes that follow a load: simulated pools under steady loads and under square waves, hours in milliseconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drover.deploy.cluster.autoscale import LONGEST_WHILE_S, WHILE_S, Autoscaler, Signal, TimeShare

LOOK_S = 2.0
PLACING_S = 4.0  # from the larger wanted size to a worker that takes messages


@dataclass
class Pool:
    """Workers of equal pace before a bounded queue: messages come at a rate, as long as there are slots."""

    size: int
    service_s: float
    slots: int = 64

    def __post_init__(self) -> None:
        self.queue: deque[float] = deque()  # arrival times; fractions of a message wait in `_coming`
        self._coming = self._done = 0.0
        self._ready = [(0.0, self.size)]  # (from when, workers)

    def signal(self, now_s: float, rate: float, starved: bool | None) -> Signal:
        """The signal after another LOOK_S at that many messages a second."""
        alive = [count for since_s, count in self._ready if since_s <= now_s][-1]
        alive = min(alive, self.size)
        self._coming = min(self._coming + rate * LOOK_S, self.slots - len(self.queue) + 0.999)
        while self._coming >= 1 and len(self.queue) < self.slots:
            self._coming -= 1
            self.queue.append(now_s)
        able = alive * LOOK_S / self.service_s
        done = min(able, len(self.queue) + self._done)
        self._done += done
        while self._done >= 1 and self.queue:
            self._done -= 1
            self.queue.popleft()
        busy = min(1.0, done / able)
        age_s = now_s - self.queue[0] if self.queue else 0.0
        waits = None if starved is None else (0.5 if starved and len(self.queue) > alive else 0.0)
        return Signal(self.size, alive, busy, len(self.queue), age_s, waits)

    def resize(self, size: int, now_s: float) -> None:
        if size > self.size:
            self._ready.append((now_s + PLACING_S, size))
        self.size = size


def sizes_over_time(
    pool: Pool, load: Callable[[float], float], bounds: tuple[int, int], hours: float, starved: bool | None = None
) -> list[tuple[float, int]]:
    """(second, size) at every look."""
    scaler, found = Autoscaler(bounds), []
    for look in range(int(hours * 3600 / LOOK_S)):
        now_s = look * LOOK_S
        signal = pool.signal(now_s, load(now_s), starved)
        pool.resize(scaler.wanted(signal, now_s), now_s)
        found.append((now_s, pool.size))
    return found


def changes(sizes: list[tuple[float, int]], after_s: float = 0.0) -> list[tuple[float, int]]:
    return [(now_s, size) for (_, before), (now_s, size) in pairwise(sizes) if size != before and now_s >= after_s]


def square(period_s: float, low: float, high: float) -> Callable[[float], float]:
    return lambda now_s: high if now_s % period_s < period_s / 2 else low


# -------------------------------------------------------------------------------------------- steady loads


@pytest.mark.parametrize("starved", [None, True])
def test_a_load_for_five_workers_grows_the_pool_to_them_within_two_minutes_and_then_nothing_changes(
    starved: bool | None,
) -> None:
    sizes = sizes_over_time(Pool(1, service_s=1.0), lambda _: 5.0, (1, 16), hours=2, starved=starved)
    grown = next(now_s for now_s, size in sizes if size >= 5)
    assert grown <= 120
    assert changes(sizes, after_s=600) == []
    assert 5 <= sizes[-1][1] <= 8


def test_an_idle_pool_shrinks_to_its_least_once_a_while_has_passed() -> None:
    sizes = sizes_over_time(Pool(8, service_s=1.0), lambda _: 0.5, (2, 16), hours=0.2)
    assert [size for _, size in changes(sizes)] == [2]
    assert changes(sizes)[0][0] == pytest.approx(WHILE_S, abs=2 * LOOK_S)


def test_workers_are_not_added_where_the_learner_waits_for_nobody() -> None:
    """Busy actors and an old queue are no reason by themselves: bursts of orders make both."""
    scaler = Autoscaler((1, 8))
    signal = Signal(size=2, alive=2, busy=1.0, backlog=16, age_s=30.0, starved=0.05)
    assert {scaler.wanted(signal, 2.0 * look) for look in range(500)} == {2}


def test_workers_are_not_added_where_every_order_is_already_in_hand() -> None:
    scaler = Autoscaler((1, 8))
    signal = Signal(size=4, alive=4, busy=1.0, backlog=4, age_s=30.0, starved=0.9)
    assert {scaler.wanted(signal, 2.0 * look) for look in range(500)} == {4}


def test_a_burst_that_the_learner_waits_for_keeps_the_workers_that_share_it() -> None:
    """Strictly on-policy, four actors rest while the learner works; three would take two turns for four orders."""
    scaler, burst = Autoscaler((1, 8)), Signal(size=4, alive=4, busy=0.4, backlog=4, age_s=1.0, starved=0.5)
    between = replace(burst, backlog=0, age_s=0.0)
    sizes = {scaler.wanted(burst if look % 3 == 0 else between, 2.0 * look) for look in range(500)}
    assert sizes == {4}


def test_a_pool_that_outgrew_its_cluster_shrinks_when_it_idles_but_not_while_it_starts() -> None:
    idle = Signal(size=8, alive=6, busy=0.1, backlog=0, age_s=0.0, starved=0.0)
    scaler = Autoscaler((1, 8))
    found = [scaler.wanted(idle, now_s) for now_s in range(0, int(WHILE_S) + 10, 2)]
    assert found[0] == 8 and min(found) == 1
    starting = Autoscaler((1, 8))
    assert {starting.wanted(replace(idle, alive=0, busy=0.0), now_s) for now_s in range(0, 300, 2)} == {8}


def test_nothing_grows_while_workers_are_still_being_placed() -> None:
    scaler = Autoscaler((1, 64))
    signal = Signal(size=8, alive=5, busy=1.0, backlog=100, age_s=60.0)
    assert {scaler.wanted(signal, 2.0 * look) for look in range(500)} == {8}


# ------------------------------------------------------------------------------------------- square waves


@pytest.mark.parametrize("starved", [None, True])
@pytest.mark.parametrize("period_s", [8.0, 20.0, 60.0, 130.0, 300.0, 600.0, 900.0])
def test_a_square_wave_of_up_to_a_quarter_of_an_hour_settles_at_the_size_of_its_height(
    period_s: float, starved: bool | None
) -> None:
    """The time that shrinking looks back doubles when growing follows shrinking: after six waves no size changes any more."""
    load = square(period_s, low=0.5, high=6.0)
    waves_s = max(period_s, WHILE_S)
    sizes = sizes_over_time(Pool(1, service_s=1.0), load, (1, 16), hours=15 * waves_s / 3600, starved=starved)
    assert changes(sizes, after_s=7 * waves_s) == []
    if period_s >= 60:
        assert sizes[-1][1] >= 6


@pytest.mark.parametrize("period_s", [8.0, 20.0, 60.0, 130.0, 300.0, 900.0, 2400.0, 5400.0])
def test_a_square_wave_changes_the_size_at_most_twice_a_period_after_the_first(period_s: float) -> None:
    load = square(period_s, low=0.5, high=6.0)
    hours = 6 * max(period_s, 300) / 3600
    sizes = sizes_over_time(Pool(1, service_s=1.0), load, (1, 16), hours)
    for start in range(1, int(hours * 3600 / period_s)):
        inside = [now_s for now_s, _ in changes(sizes) if start * period_s <= now_s < (start + 1) * period_s]
        assert len(inside) <= 2, (start, inside)


def test_a_wave_slower_than_the_longest_while_is_followed() -> None:
    period_s = 3 * LONGEST_WHILE_S
    sizes = sizes_over_time(Pool(1, service_s=1.0), square(period_s, 0.5, 6.0), (1, 16), hours=3)
    last = [size for now_s, size in sizes if now_s >= 2 * 3600]
    assert min(last) == 1
    assert max(last) >= 6


# --------------------------------------------------------------------------------------------- properties

signals = st.builds(
    Signal,
    size=st.integers(1, 40),
    alive=st.integers(0, 40),
    busy=st.floats(0.0, 1.0),
    backlog=st.integers(0, 200),
    age_s=st.floats(0.0, 1e4),
    starved=st.none() | st.floats(0.0, 1.0),
)


@given(
    bounds=st.tuples(st.integers(1, 20), st.integers(0, 20)).map(lambda pair: (pair[0], pair[0] + pair[1])),
    looks=st.lists(st.tuples(signals, st.floats(0.0, 300.0)), min_size=1, max_size=60),
    obeys=st.booleans(),
)
def test_the_size_is_inside_its_bounds_for_any_signals(
    bounds: tuple[int, int], looks: list[tuple[Signal, float]], obeys: bool
) -> None:
    scaler, now_s, size = Autoscaler(bounds), 0.0, looks[0][0].size
    for signal, pause_s in looks:
        now_s += pause_s
        size = scaler.wanted(replace(signal, size=size) if obeys else signal, now_s)
        assert bounds[0] <= size <= bounds[1]


@settings(max_examples=25, deadline=None)
@given(rate=st.floats(0.0, 20.0), service_s=st.floats(0.05, 20.0), slots=st.integers(1, 64), start=st.integers(1, 16))
def test_under_any_steady_load_the_size_comes_to_rest(rate: float, service_s: float, slots: int, start: int) -> None:
    sizes = sizes_over_time(Pool(start, service_s, slots), lambda _: rate, (1, 16), hours=0.75)
    assert len(changes(sizes, after_s=1500)) <= 1, changes(sizes)


# ------------------------------------------------------------------------------------------------- shares


def test_a_share_is_of_the_time_that_was_accounted_for_since_the_last_one() -> None:
    share = TimeShare(frozenset({"compute", "data"}))
    assert share.look({"actor-0": {"compute": 100.0, "back_pressure": 0.0}}) == 0.0
    assert share.look({"actor-0": {"compute": 103.0, "back_pressure": 1.0}}) == 0.75


def test_a_share_stands_while_a_long_order_is_under_way() -> None:
    share = TimeShare(frozenset({"compute"}))
    share.look({"actor-0": {"compute": 0.0, "other": 0.0}})
    share.look({"actor-0": {"compute": 9.0, "other": 1.0}})
    assert [share.look({"actor-0": {"compute": 9.0, "other": 1.0}}) for _ in range(30)] == [0.9] * 30
    assert share.look({"actor-0": {"compute": 69.0, "other": 1.0}}) == 1.0


def test_workers_that_come_go_or_begin_anew_do_not_count_before_their_next_look() -> None:
    share = TimeShare(frozenset({"compute"}))
    share.look({"a": {"compute": 50.0, "other": 50.0}, "b": {"compute": 10.0, "other": 0.0}})
    found = share.look(
        {"a": {"compute": 51.0, "other": 51.0}, "b": {"compute": 1.0, "other": 0.0}, "c": {"compute": 7.0}}
    )
    assert found == 0.5
    assert share.look({"b": {"compute": 3.0, "other": 0.0}, "c": {"compute": 9.0}}) == 1.0
