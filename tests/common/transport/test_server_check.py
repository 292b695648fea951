"""A run refuses a Redis with wrong settings, reads every form of its URL, and reports a Redis that does not answer."""

from __future__ import annotations

import socket as socketlib
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import pytest
import redis
from redis.exceptions import (
    ClusterCrossSlotError,
    ConnectionError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from benchmarks.chaos.own_redis import OwnRedis
from drover.common.errors import ConfigError, TransportError
from drover.common.transport.connection import complete, connect, explain, open_client
from drover.common.transport.embedded import EmbeddedRedis, find_server
from drover.common.transport.redis_broker import RedisBroker
from drover.common.transport.server_check import address, faults
from drover.common.types import GroupFailed, Purpose, Stage
from drover.deploy.cluster.connection import redis_url
from drover.deploy.commands.checks.redis_server import named

GOOD = {"redis_version": "6.2.14", "maxmemory_policy": "noeviction", "role": "master", "redis_mode": "standalone"}


@pytest.fixture
def server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(max_memory_bytes=16 << 20) as server:
        yield server


def told(facts: Mapping[str, object], url: str = "redis://localhost:1/0") -> list[str]:
    return [f"{found}; {fix}" for found, fix in faults(url, {**GOOD, **facts})]


def test_a_plain_redis_of_ones_own_machine_has_no_fault() -> None:
    assert told({}) == told({"redis_version": "255.255.255"}) == []


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"redis_version": "6.0.20"}, "is of version 6.0.20, which lacks commands; use 6.2 or newer"),
        ({"maxmemory_policy": "allkeys-lru"}, "evicts"),
        ({"maxmemory_policy": "volatile-ttl"}, "(volatile-ttl)"),
        ({"maxmemory_policy": "volatile-lru"}, "set maxmemory-policy noeviction"),
        ({"role": "slave"}, "is a replica, which takes no writes; name its primary"),
        ({"redis_mode": "sentinel"}, "is a Sentinel; name the primary that it watches"),
        ({"redis_mode": "cluster"}, "is part of a Redis Cluster, which scatters the keys of a run; name"),
        ({"aof_enabled": 1, "aof_last_write_status": "err"}, "cannot write its log; make room on its volume"),
    ],
)  # fmt: skip
def test_a_redis_that_cannot_serve_a_run_has_a_fault_with_its_remedy(facts: dict[str, object], said: str) -> None:
    (found,) = told(facts)
    assert said in found


@pytest.mark.parametrize("url", ["redis://far:6379", "redis://me@10.0.0.7", "rediss://far:6379/1?db=2"])
def test_a_redis_beyond_this_machine_that_asks_for_no_password_has_a_fault(url: str) -> None:
    (found,) = told({}, url)
    assert found.startswith("takes commands without a password from beyond this machine; set requirepass")


@pytest.mark.parametrize(
    "url",
    [
        "redis://:p@far:6379",
        "redis://far:6379?password=p",
        "redis://localhost",
        "redis://127.0.0.1:1",
        "redis://127.0.0.2:1",
        "redis://[::1]:1",
        "redis:///0",
        "unix:///run/redis.sock",
    ],
)
def test_one_with_a_password_or_of_this_machine_has_none(url: str) -> None:
    assert told({}, url) == []


@pytest.mark.service
@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-lru", "volatile-ttl"])
def test_a_run_and_each_of_its_roles_refuse_at_once_what_doctor_calls_a_problem(
    server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    monkeypatch.setenv("DROVER_REDIS_URL", server.url)
    client = redis.Redis.from_url(server.url)
    client.config_set("maxmemory-policy", policy)
    (problem,) = (one for one in named(server.url) if one.state == "problem")
    with pytest.raises(ConfigError, match=f"{policy}.*; set maxmemory-policy noeviction") as caught, redis_url():
        pass
    assert problem.found in str(caught.value) and problem.fix in str(caught.value)
    with pytest.raises(ConfigError, match=policy):
        RedisBroker(server.url, "run")


@pytest.mark.service
def test_a_replica_is_refused_before_anything_is_written_to_it(server: EmbeddedRedis) -> None:
    client = redis.Redis.from_url(server.url)
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(ConfigError, match="is a replica, which takes no writes; name its primary"):
        connect(server.url)


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (
            ResponseError("MISCONF Redis is configured to save RDB snapshots, but"),
            "cannot save its data, so it takes no",
        ),
        (
            ReadOnlyError("You can't write against a read only replica."),
            "is a replica, which takes no writes; name its",
        ),
        (NoPermissionError("this user has no permissions to run 'xadd'"), "refuses a command; check the user's rights"),
        (ClusterCrossSlotError("Keys in request don't hash to the same slot"), "is part of a Redis Cluster"),
        (MovedError("3999 127.0.0.1:6381"), "is part of a Redis Cluster"),
        (ResponseError("NOREPLICAS Not enough good replicas to write."), "has too few replicas"),
        (ResponseError("unknown command 'EVALSHA', with args"), "lacks a command that drover needs"),
        (ConnectionError("DENIED Redis is running in protected mode"), "takes no commands from other machines; set"),
        (
            OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
            "has no memory left; raise its maxmemory",
        ),
        (ResponseError("ERR of a kind of its own"), "refuses a command; see what it said"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_later_error_of_redis_is_told_with_its_meaning(error: RedisError, meaning: str) -> None:
    told = explain(error, "redis://:hush@h:1")
    assert isinstance(told, TransportError) and meaning in str(told) and str(error) in str(told)
    assert "hush" not in str(told)


# ------------------------------------------------------------------------------------------------ URLs


@pytest.mark.parametrize(
    ("url", "options", "wanted", "where"),
    [
        ("unix:///run/r.sock", {}, "unix:///run/r.sock", "/run/r.sock"),
        ("unix:///run/r.sock?db=2", {}, "unix:///run/r.sock?db=2", "/run/r.sock"),
        ("unix:///run/r.sock", {"password": "p/q"}, "unix://:p%2Fq@/run/r.sock", "/run/r.sock"),
        ("unix://me@/run/r.sock?db=2", {"password": "p"}, "unix://me:p@/run/r.sock?db=2", "/run/r.sock"),
        ("redis:///1", {}, "redis:///1", "localhost:6379"),
        ("redis:///1", {"password": "p"}, "redis://:p@/1", "localhost:6379"),
        ("rediss:///1", {"ca": "/ca.pem"}, "rediss:///1?ssl_ca_certs=/ca.pem", "localhost:6379"),
        ("redis://", {}, "redis://", "localhost:6379"),
        ("redis://h", {"password": "p"}, "redis://:p@h", "h:6379"),
        ("redis://[::1]:7/0", {"password": "p"}, "redis://:p@[::1]:7/0", "[::1]:7"),
    ],
)
def test_a_url_without_a_host_stays_one(url: str, options: dict[str, str], wanted: str, where: str) -> None:
    found = complete(url, **options)
    assert found == wanted and address(found) == where
    open_client(found).close()


@pytest.mark.service
@pytest.mark.parametrize("password", ["", "hunter2/+"])
def test_a_redis_on_a_unix_socket_serves_a_run_and_is_named_by_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    socket = tmp_path / "r.sock"
    options = ["--requirepass", password] if password else []
    command = [
        find_server(),
        "--port",
        "0",
        "--unixsocket",
        str(socket),
        "--save",
        "",
        "--dir",
        str(tmp_path),
        *options,
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        await_answer(socket, process)
        monkeypatch.setenv("DROVER_REDIS_URL", f"unix://{socket}?db=2")
        if password:
            monkeypatch.setenv("DROVER_REDIS_PASSWORD", password)
        with redis_url() as url:
            broker = RedisBroker(url, "run")
            broker.stream(broker.keys.work, "actors").put(note(7))
            (delivery,) = broker.stream(broker.keys.work, "actors").take(1, 2.0)
            assert delivery.message == note(7)
            broker.forget()
            broker.close()
            findings = named(url)
        assert findings[0].found.split("; ")[0].endswith(f"answers at {socket}")
        assert [one.state for one in findings] == ["ok", "advice"]
    finally:
        process.kill()
        process.wait()


def await_answer(socket: Path, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        with socketlib.socket(socketlib.AF_UNIX) as probe:
            if probe.connect_ex(str(socket)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("redis-server ended")


def note(group: int) -> GroupFailed:
    return GroupFailed(epoch=0, group=group, attempt=1, purpose=Purpose.TRAIN, stage=Stage.SAMPLE, reason="nan")


# ----------------------------------------------------------------------------------------- while it is away


@pytest.mark.service
def test_an_outage_is_told_when_it_begins_and_when_it_ends(tmp_path: Path) -> None:
    told: list[str] = []
    with OwnRedis(tmp_path) as server:
        broker = RedisBroker(server.url, "run", patience_s=60.0)
        server.kill()
        back = Thread(target=lambda: (time.sleep(1.0), server.start()))
        back.start()
        broker.tell_outages(told.append)
        broker.blobs().put("b", [b"1"])
        back.join()
        broker.close()
    first, last = told
    assert f"{urlsplit(server.url).port}/0 cannot be reached; trying again for 60 s" in first
    assert "answers again, after" in last
    assert str(urlsplit(server.url).password) not in first + last
