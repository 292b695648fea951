"""The embedded Redis is private, bounded, and ends with the process that started it; failed connections name a remedy."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import pytest
import redis

from drover.common.errors import ConfigError, TransportError
from drover.common.transport import connection, embedded
from drover.common.transport.connection import connect, mask
from drover.common.transport.embedded import EmbeddedRedis

pytestmark = pytest.mark.service
SECRET = "hunter2"


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(max_memory_bytes=32 << 20) as server:
        yield server


def address(server: EmbeddedRedis) -> str:
    parts = urlsplit(server.url)
    return f"{parts.hostname}:{parts.port}"


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_it_answers_and_is_bounded_in_memory_without_evicting_or_saving(server):
    client = connect(server.url)
    config = client.config_get("*")
    assert config["maxmemory"] == str(32 << 20)
    assert (config["maxmemory-policy"], config["save"], config["appendonly"]) == ("noeviction", "", "no")
    assert config["bind"] == "127.0.0.1"


def test_nobody_gets_in_without_the_password(server):
    with pytest.raises(TransportError, match="wants a password and the URL has none; write redis://:PASSWORD"):
        connect(f"redis://{address(server)}")


def test_a_wrong_password_is_named_as_such_and_not_shown(server):
    with pytest.raises(TransportError, match="refuses the user or password") as caught:
        connect(f"redis://:{SECRET}@{address(server)}")
    assert SECRET not in str(caught.value) and ":***@" in str(caught.value)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="reads /proc")
def test_the_password_is_in_no_argument_or_environment(server):
    password = str(urlsplit(server.url).password)
    assert len(password) >= 32
    for what in ("cmdline", "environ"):
        assert password.encode() not in Path(f"/proc/{server.pid}/{what}").read_bytes()


def test_it_stops_with_its_context_and_leaves_nothing():
    with EmbeddedRedis() as server:
        pid, url, folder = server.pid, server.url, Path(server._folder.name)
        assert folder.exists()
    with pytest.raises(TransportError, match="cannot be reached"):
        connect(url)
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere only an orderly exit stops it")
def test_it_dies_with_a_parent_that_was_killed():
    script = (
        "import sys, time\nfrom drover.common.transport.embedded import EmbeddedRedis\n"
        "server = EmbeddedRedis()\nserver.start()\nprint(server.pid, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    gives_up_s = time.monotonic() + 2.0
    while alive(pid) and time.monotonic() < gives_up_s:
        time.sleep(0.02)
    assert not alive(pid)


def test_a_port_taken_meanwhile_is_left_for_another(monkeypatch):
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        taken = squatter.getsockname()[1]
        ports = iter([taken])
        free_port = embedded._free_port
        monkeypatch.setattr(embedded, "_free_port", lambda: next(ports, None) or free_port())
        with EmbeddedRedis() as server:
            assert urlsplit(server.url).port != taken
            assert connect(server.url).ping()


def test_a_failed_start_gives_the_servers_last_words():
    with pytest.raises(
        TransportError, match=r"did not start, it ended with code 1: .*(maxmemory|argument|memory value)"
    ):
        EmbeddedRedis(max_memory_bytes="a lot").start()  # type: ignore[arg-type]


def test_a_closed_port_says_that_it_cannot_be_reached():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(TransportError, match=f"127.0.0.1:{port}/0 cannot be reached; check that it runs") as caught:
        connect(f"redis://user:{SECRET}@127.0.0.1:{port}/0")
    assert SECRET not in str(caught.value)


def test_something_that_is_not_redis_is_recognised():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def answer() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = Thread(target=answer)
        thread.start()
        with pytest.raises(TransportError, match="answers, but not as Redis does; check the port"):
            connect(f"redis://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()


def test_tls_towards_a_plain_port_is_named(server, monkeypatch):
    monkeypatch.setattr(connection, "REPLY_TIMEOUT_S", 0.3)
    with pytest.raises(TransportError, match="does not answer in time; .* rediss:// is used for TLS alone"):
        connect(server.url.replace("redis://", "rediss://"))


@pytest.mark.parametrize("url", ["http://host:1", "localhost:6379", f"redis://:{SECRET}@host:port"])
def test_an_invalid_redis_url_is_refused_without_showing_a_password(url):
    with pytest.raises(TransportError, match="is no Redis URL; write redis://") as caught:
        connect(url)
    assert SECRET not in str(caught.value)


def test_a_server_that_evicts_messages_is_refused(server):
    client = redis.Redis.from_url(server.url)
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(ConfigError, match=r"allkeys-lru.*set maxmemory-policy noeviction"):
            connect(server.url)
    finally:
        client.config_set("maxmemory-policy", "noeviction")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"redis://:{SECRET}@host:1/0", "redis://:***@host:1/0"),
        (f"rediss://me:{SECRET}@x/@host:1", "rediss://me:***@host:1"),
        (f"redis://host:1?password={SECRET}&db=2", "redis://host:1?password=***&db=2"),
        ("redis://host:1/0", "redis://host:1/0"),
    ],
)
def test_masked_urls_keep_everything_but_the_password(url, shown):
    assert mask(url) == shown


def test_one_that_is_killed_is_started_again_at_the_same_address_until_it_is_stopped():
    with EmbeddedRedis() as server:
        url = server.url
        for _ in range(2):
            pid = server.pid
            connect(url).set("key", "value")
            os.kill(pid, signal.SIGKILL)
            gives_up_s = time.monotonic() + 30.0
            while time.monotonic() < gives_up_s:
                try:
                    assert connect(url).get("key") is None, "came back with what it had"
                    break
                except (TransportError, redis.RedisError):
                    time.sleep(0.02)
            assert server.pid != pid
    with pytest.raises(TransportError, match="cannot be reached"):
        connect(url)
