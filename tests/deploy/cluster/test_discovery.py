"""The driver's port, over a real Redis and real endpoints: the list of workers, the queues, and one page of all metrics."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from urllib.request import urlopen

import pytest

from drover.common import metrics
from drover.common.exporter import read
from drover.common.transport import keys
from drover.common.transport.embedded import EmbeddedRedis
from drover.common.transport.redis_broker import RedisBroker
from drover.common.types import Report
from drover.deploy.cluster.connection import address, serve_metrics
from drover.deploy.cluster.discovery import MetricsEndpoint
from drover.deploy.cluster.monitor import Listen, Monitor
from drover.deploy.roles import Streams
from drover.deploy.run_folder.results import RunFolder
from tests.deploy.in_place import small

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with EmbeddedRedis(max_memory_bytes=64 << 20) as server:
        yield server.url


@pytest.fixture
def broker(redis_url: str, request: pytest.FixtureRequest) -> Iterator[RedisBroker]:
    broker = RedisBroker(redis_url, request.node.name[:100])
    yield broker
    broker.forget()
    broker.close()


@pytest.fixture
def monitor(broker: RedisBroker, tmp_path: Path) -> Iterator[Monitor]:
    folder = RunFolder.create("blue", tmp_path)
    with Monitor(broker, Streams(broker, small()), folder, run="blue", listen=Listen()) as monitor:
        yield monitor


def get(monitor: Monitor, path: str) -> str:
    with urlopen(f"http://{monitor.address}{path}", timeout=5) as answer:
        page: bytes = answer.read()
    return page.decode()


def values(page: str, name: str, **labels: str) -> list[float]:
    return [value for found, mine, value in read(page) if found == name and labels.items() <= mine.items()]


def test_prometheus_is_told_of_every_worker_and_of_the_driver_as_they_come_and_go(
    monitor: Monitor, tmp_path: Path
) -> None:
    driver = {"targets": [monitor.address], "labels": {"run": "blue", "role": "driver", "worker": "driver"}}
    assert json.loads(get(monitor, "/targets")) == [driver]
    monitor.look({"actor-0": MetricsEndpoint("actor", "10.0.0.7:40001", cpus=2.0)})
    actor = {"targets": ["10.0.0.7:40001"], "labels": {"run": "blue", "role": "actor", "worker": "actor-0"}}
    assert json.loads(get(monitor, "/targets")) == [actor, driver]
    assert json.loads((tmp_path / "blue" / "metrics_targets.json").read_text()) == [actor, driver]
    monitor.look({})
    assert json.loads(get(monitor, "/targets")) == [driver]


def test_one_page_has_the_metrics_of_all_and_leaves_out_who_does_not_answer(monitor: Monitor) -> None:
    meter, actor = serve_metrics()
    meter.add(metrics.SAMPLES, 12)
    monitor.look({"actor-0": MetricsEndpoint("actor", actor), "actor-1": MetricsEndpoint("actor", "127.0.0.1:1")})
    page = get(monitor, "/metrics/all")
    assert values(page, "drover_samples_total", run="blue", role="actor", worker="actor-0") == [12]
    assert values(page, "drover_build_info", worker="actor-0") == [1]
    assert values(page, "drover_workers", role="actor", worker="driver") == [2]
    assert {labels["worker"] for _, labels, _ in read(page)} == {"actor-0", "driver"}


def test_who_is_there_what_is_set_aside_and_who_died(monitor: Monitor) -> None:
    first = {"actor-0": MetricsEndpoint("actor", "h:1", 2.0, 1.0), "actor-1": MetricsEndpoint("actor", "h:2", 2.0, 1.0)}
    monitor.look(first | {"learner-0": MetricsEndpoint("learner", "h:3", 4.0, 1.0)})
    page = get(monitor, "/metrics")
    assert values(page, "drover_workers", role="actor") == [2]
    assert values(page, "drover_reserved_cpus", role="actor") == [4]
    assert values(page, "drover_reserved_gpus", role="learner") == [1]
    assert values(page, "drover_worker_deaths_total", role="actor") == [0], "there from the start, to be seen rising"
    monitor.look({**first, "actor-1": MetricsEndpoint("actor", "h:9", 2.0, 1.0)})
    assert values(get(monitor, "/metrics"), "drover_worker_deaths_total", role="actor") == [1]
    monitor.look({})
    page = get(monitor, "/metrics")
    assert values(page, "drover_workers", role="actor") == [0], "one that was sent away did not die"
    assert values(page, "drover_worker_deaths_total", role="actor") == [1]


def test_every_queue_is_aged_by_reader_and_what_was_given_up_is_counted_once(
    monitor: Monitor, broker: RedisBroker
) -> None:
    streams = Streams(broker, small())
    work = streams.open(broker.keys.work, keys.ACTORS)
    for _ in range(3):
        work.put(Report(kind="stop", at_s=0.0, version=-1, scalars={}))
    (taken,) = work.take(1, 1.0)
    work.bury(taken, "nobody can finish it")
    for _ in range(2):
        monitor.look({})
    page = get(monitor, "/metrics")
    assert values(page, "drover_queue_backlog_messages", stream="work", reader="actors") == [2]
    (age_s,) = values(page, "drover_queue_age_seconds", stream="work", reader="actors")
    assert 0 < age_s < 60 and monitor.scalars["queue/work/age_s"] == age_s
    assert values(page, "drover_queue_backlog_messages", stream="rollouts", reader="reward:point") == [0]
    assert monitor.scalars["queue/work/backlog"] == 2 and monitor.scalars["queue/point/backlog"] == 0
    assert values(page, "drover_dead_letters_total", stream="work") == [1]
    assert values(page, "drover_dead_letters_total", stream="rollouts") == [0]


def test_redis_tells_its_memory_and_how_much_it_may_use(monitor: Monitor) -> None:
    monitor.look({})
    page = get(monitor, "/metrics")
    (used,), (limit,) = values(page, "drover_redis_memory_bytes"), values(page, "drover_redis_memory_limit_bytes")
    assert 0 < used < limit == 64 << 20 == monitor.scalars["redis/limit_bytes"]


def test_of_several_redis_each_has_a_series_and_the_fullest_is_told(redis_url: str, tmp_path: Path) -> None:
    with EmbeddedRedis(max_memory_bytes=8 << 20) as smaller:
        broker = RedisBroker(f"{redis_url} {smaller.url}", "several")
        folder = RunFolder.create("several", tmp_path)
        with Monitor(broker, Streams(broker, small()), folder, run="several", listen=Listen()) as monitor:
            monitor.look({})
            page = get(monitor, "/metrics")
            limits = [values(page, "drover_redis_memory_limit_bytes", server=server) for server in "01"]
            assert limits == [[64 << 20], [8 << 20]]
            assert monitor.scalars["redis/limit_bytes"] == 8 << 20
        broker.close()


def test_looking_at_queues_makes_no_consumer_of_them(monitor: Monitor, broker: RedisBroker) -> None:
    monitor.look({})
    assert broker.link.client.xinfo_consumers(broker.keys.work, keys.ACTORS) == []


def test_only_loopback_listens_unless_asked_and_everywhere_is_called_by_the_nodes_address() -> None:
    assert Listen().host == "127.0.0.1" and address("127.0.0.1", 9464) == "127.0.0.1:9464"
    assert address("::1", 9464) == "[::1]:9464"
    host, _, port = address("0.0.0.0", 9464).rpartition(":")
    assert port == "9464" and host not in ("0.0.0.0", "")


def test_the_driver_leaves_once_a_reader_that_comes_again_and_again_has_read_how_the_run_ended(
    broker: RedisBroker, tmp_path: Path
) -> None:
    read: list[float] = []
    with Monitor(broker, Streams(broker, small()), RunFolder.create("run", tmp_path), run="run", listen=Listen()) as it:
        over = Event()

        def reads() -> None:
            while not over.wait(0.5):
                with suppress(OSError):
                    read.extend(values(get(it, "/metrics"), "drover_run_ended", how="failed"))

        reader = Thread(target=reads)
        reader.start()
        time.sleep(1.5)
        it.announce("failed")
        it.announce("finished")
    over.set()
    reader.join()
    assert read[-1] == 1 and set(read) == {0, 1}


def test_a_driver_that_nobody_reads_or_that_was_looked_at_once_does_not_wait(
    broker: RedisBroker, tmp_path: Path
) -> None:
    for looks in range(3):
        folder = RunFolder.create(f"run-{looks}", tmp_path)
        with Monitor(broker, Streams(broker, small()), folder, run=folder.path.name, listen=Listen()) as it:
            for _ in range(looks):
                get(it, "/metrics/all")
            assert it.patience_s() == 0, "the run has not ended"
            it.announce("finished")
            assert (it.patience_s() > 0) == (looks == 2)
            get(it, "/metrics/all")
            assert it.patience_s() == 0
