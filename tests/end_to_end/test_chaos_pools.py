"""Workers that hang, on a Ray of their own, are noticed, killed and replaced; a pool that stays silent is an error, and
a pool that finds no place is reported."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import psutil
import pytest

from drover.common.errors import DroverError
from drover.common.weights.object_store import start_directory
from drover.deploy.cluster import pools
from drover.deploy.cluster.connection import Connection
from drover.deploy.cluster.worker import pools_of
from drover.deploy.config import Pools
from drover.deploy.recipes.toy_ddpo import toy_ddpo

pytestmark = [pytest.mark.service, pytest.mark.slow]

PATIENCE_S = 300.0
Known = dict[str, dict[str, object]]


class Watched:
    """The toy's pools without any work, and the events that they report to the driver."""

    def __init__(self, redis_url: str) -> None:
        connection, config = Connection("pools", redis_url), toy_ddpo()
        self.events: list[str] = []
        self.directory = start_directory(connection.directory)
        self.pools = pools.WorkerPools(
            config, connection, pools_of(config, gpus=0.0), claim_cpus=False, on_event=self.events.append
        )
        self.pools.start()

    def pid(self, worker: str) -> int:
        return int(self.pools._members[worker].known.get("pid", 0))

    def until(self, reached: Callable[[], bool]) -> None:
        gives_up_s = time.monotonic() + PATIENCE_S
        while not reached():
            assert time.monotonic() < gives_up_s, self.events
            self.pools.look()
            time.sleep(0.1)


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture
def watched(ray: None, redis_url: str) -> Iterator[Watched]:
    watched = Watched(redis_url)
    watched.until(lambda: all(map(watched.pid, ("actor-0", "point-0"))))
    yield watched
    watched.pools.stop()


def test_a_worker_that_hangs_is_killed_and_replaced_and_a_pool_that_stays_away_is_an_error(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "WEDGED_S", 2.0)
    hanging = psutil.Process(watched.pid("actor-0"))
    hanging.send_signal(signal.SIGSTOP)
    watched.until(lambda: watched.pid("actor-0") != hanging.pid)
    assert not hanging.is_running() or hanging.status() == psutil.STATUS_ZOMBIE
    assert "actor-0 has not answered for 2 s and is replaced" in watched.events
    assert not [event for event in watched.events if event.startswith("point-0")]

    watched.pools._patience_s["point"] = 3.0  # the time that it took to start may have set this higher
    silent = psutil.Process(watched.pid("point-0"))
    silent.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(pools, "WEDGED_S", 1000.0)
    with pytest.raises(DroverError, match=r"no worker of the pool 'point' has answered for \d+ s"):
        watched.until(lambda: False)
    silent.send_signal(signal.SIGCONT)


def test_workers_without_a_place_are_told_of_once(ray: None, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "LATE_S", 1.0)
    config, connection, events = replace(toy_ddpo(), pools=Pools(actors=2)), Connection("placeless", redis_url), []
    placeless = pools.WorkerPools(
        config, connection, pools_of(config, gpus=1.0), claim_cpus=False, on_event=events.append
    )
    placeless.start()
    gives_up_s = time.monotonic() + PATIENCE_S
    while not any("pool rollout" in event for event in events):
        assert time.monotonic() < gives_up_s
        placeless.look()
        time.sleep(0.1)
    for _ in range(3):
        placeless.look()
    (told,) = [event for event in events if "pool rollout" in event]
    assert told.startswith(
        "2 of 2 workers of the pool rollout are not up after 1 s; each asks for no CPU of its own and 1 GPU;"
    )
    placeless.stop()
