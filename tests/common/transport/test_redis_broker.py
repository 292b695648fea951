"""The broker on a real Redis, where the in-memory one has no equal: restarts, full memory, damaged entries, dead processes."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from threading import Thread, Timer
from urllib.parse import urlsplit

import pytest

from benchmarks.chaos.own_redis import OwnRedis
from drover.common.errors import BlobTooLarge, TransportError
from drover.common.transport import redis_broker
from drover.common.transport.embedded import EmbeddedRedis, connect
from drover.common.transport.redis_broker import RedisBroker
from drover.common.types import GroupFailed, Purpose, Stage

pytestmark = pytest.mark.service


@pytest.fixture
def server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(max_memory_bytes=16 << 20) as server:
        yield server


@pytest.fixture
def broker(server: EmbeddedRedis) -> Iterator[RedisBroker]:
    broker = RedisBroker(server.url, "run", patience_s=5.0)
    yield broker
    broker.close()


def note(group: int) -> GroupFailed:
    return GroupFailed(epoch=0, group=group, attempt=1, purpose=Purpose.TRAIN, stage=Stage.SAMPLE, reason="nan")


def test_a_restarted_and_empty_redis_does_not_end_a_role(server, broker):
    stream = broker.stream(broker.keys.work, "actors", lease_s=0.6)
    stream.put(note(1))
    (lost,) = stream.take(1, 1.0)
    server.restart()
    stream.put(note(2))
    assert [delivery.message for delivery in stream.take(5, 2.0)] == [note(2)]
    stream.ack(lost)
    time.sleep(0.6)  # the heartbeat meets groups that are gone, and goes on
    assert stream.backlog()[0] == 1


def test_blobs_are_spread_evenly_over_the_servers_and_all_of_them_are_forgotten(server):
    with EmbeddedRedis(max_memory_bytes=16 << 20) as second:
        broker = RedisBroker(f"{server.url} {second.url}", "run")
        names = [f"3.{group}.1.actor-{group % 7}/{kind}" for group in range(200) for kind in ("media", "steps")]
        for name in names:
            broker.blobs().put(name, [name.encode()])
        clients = [connect(one.url) for one in (server, second)]
        shares = [client.dbsize() for client in clients]
        assert sum(shares) == 400 and min(shares) > 150
        assert [RedisBroker(f"{server.url} {second.url}", "run").blobs().get(name) for name in names[:20]] == [
            name.encode() for name in names[:20]
        ]
        assert [limit for _, limit in broker.memory()] == [16 << 20, 16 << 20]
        broker.blobs().drop(names[:300])
        assert sum(client.dbsize() for client in clients) == 100
        broker.forget()
        assert [client.dbsize() for client in clients] == [0, 0]
        broker.close()


@pytest.mark.parametrize(
    ("urls", "said"),
    [
        ("redis://:hush@h:1 redis://:hush@h:1", "names one Redis twice"),
        ("redis://:my hush@h:1", "number 2 does not begin with redis://.*%20"),
        ("redis://h:1,redis://h:2", "cannot be reached|no Redis URL"),
    ],
)
def test_a_list_of_servers_that_is_none_is_refused_unseen(urls, said):
    with pytest.raises(TransportError, match=said) as caught:
        RedisBroker(urls, "run")
    assert "hush" not in str(caught.value)


def test_a_waiting_consumer_lives_through_a_restart(server, broker):
    stream, taken = broker.stream(broker.keys.work, "actors"), []
    waiting = Thread(target=lambda: taken.extend(stream.take(1, 15.0)))
    waiting.start()
    time.sleep(0.2)
    server.restart()
    broker.stream(broker.keys.work).put(note(4))
    waiting.join(10.0)
    assert [delivery.message.group for delivery in taken] == [4]
    assert broker.link.retries >= 1


def test_after_a_restart_no_group_misses_what_another_acknowledged(server, broker):
    names = ("reward:a", "learner")
    reward, learner = (broker.stream(broker.keys.rollouts, name, groups=names) for name in names)
    server.restart()
    reward.put(note(1))
    reward.ack(reward.take(1, 2.0)[0])
    assert [delivery.message.group for delivery in learner.take(1, 2.0)] == [1]


def test_a_redis_that_stays_away_is_an_error_after_the_patience(server, broker):
    stream = broker.stream(broker.keys.work, "actors")
    server.stop()
    broker.link._patience_s = 0.5
    began_s = time.monotonic()
    with pytest.raises(TransportError, match="cannot be reached"):
        stream.put(note(1))
    assert time.monotonic() - began_s < 3.0
    assert broker.link.retries >= 2


def test_a_full_redis_refuses_blobs_with_the_remedy_but_lets_work_be_finished(broker):
    stream, blobs = broker.stream(broker.keys.work, "actors"), broker.blobs()
    stream.put(note(1))
    (delivery,) = stream.take(1, 1.0)
    with pytest.raises(TransportError, match="no memory left; raise its maxmemory"):
        for number in range(20):
            blobs.put(f"b{number}", [bytes(1 << 20)])
    with pytest.raises(
        TransportError, match="no memory left"
    ):  # small blobs take the memory that was too little for a large one
        for number in range(100_000):
            blobs.put(f"s{number}", [bytes(1 << 10)])
    with pytest.raises(TransportError, match="no memory left"):
        for _ in range(10_000):
            stream.put(note(2))
    waiting = stream.backlog()[0]
    stream.ack(delivery)
    assert stream.backlog()[0] == waiting - 1
    blobs.drop([f"b{number}" for number in range(20)])
    stream.put(note(3))
    assert stream.backlog()[0] == waiting


def test_a_blob_too_large_for_one_value_is_refused_by_size(broker, monkeypatch):
    monkeypatch.setattr(redis_broker, "MAX_BLOB_BYTES", 2 << 20)
    with pytest.raises(BlobTooLarge, match="3 MiB, at most 2 fit; use fewer samples"):
        broker.blobs().put("b", [bytes(3 << 20)])


def test_an_undecodable_entry_goes_to_the_dead_and_the_rest_is_delivered(broker):
    stream = broker.stream(broker.keys.work, "actors")
    broker.link.client.xadd(broker.keys.work, {"m": b"\x93garbage"})
    stream.put(note(2))
    assert [delivery.message.group for delivery in stream.take(5, 1.0)] == [2]
    (letter,) = broker.dead_letters()
    assert letter.payload == b"\x93garbage"
    assert letter.reason.startswith("undecodable: ")
    assert stream.backlog()[0] == 1


def test_memory_does_not_grow_with_the_number_of_messages(broker):
    stream = broker.stream(broker.keys.work, "actors")
    for group in range(300):
        stream.put(note(group))
        stream.ack(stream.take(1, 1.0)[0])
    assert broker.link.client.xlen(broker.keys.work) == 0


def test_two_runs_on_one_redis_do_not_meet(server, broker):
    other = RedisBroker(server.url, "other")
    broker.stream(broker.keys.work, "actors").put(note(1))
    assert other.stream(other.keys.work, "actors").take(1, 0.0) == []
    assert all(key.startswith(b"drover:run:") for key in broker.link.client.keys("*run:*"))
    other.close()


def test_messages_of_a_killed_process_are_delivered_to_another(server, broker):
    script = (
        "import sys, time\nfrom drover.common.transport.redis_broker import RedisBroker\n"
        "broker = RedisBroker(sys.stdin.readline().strip(), 'run')\n"
        "stream = broker.stream(broker.keys.work, 'actors', lease_s=0.5)\n"
        "print(len(stream.take(1, 5.0)), flush=True)\ntime.sleep(60)\n"
    )
    stream = broker.stream(broker.keys.work, "actors", lease_s=0.5)
    stream.put(note(6))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    worker = subprocess.Popen([sys.executable, "-c", script], text=True, **pipes)
    worker.stdin.write(f"{server.url}\n")
    worker.stdin.flush()
    assert worker.stdout.readline() == "1\n"
    assert stream.take(1, 1.2) == []  # alive, and renewing
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    (delivery,) = stream.take(1, 3.0)
    assert (delivery.message.group, delivery.attempt) == (6, 2)


def test_a_handed_back_message_reaches_a_consumer_that_is_already_waiting(broker):
    one, other = (broker.stream(broker.keys.work, "actors", lease_s=30.0) for _ in range(2))
    one.put(note(1))
    (delivery,) = one.take(1, 1.0)
    Timer(0.2, one.hand_back, [delivery]).start()
    began_s = time.monotonic()
    assert [again.attempt for again in other.take(1, 10.0)] == [2]
    assert time.monotonic() - began_s < 1.5


def test_a_consumer_that_closes_is_forgotten_by_redis(broker):
    stream = broker.stream(broker.keys.work, "actors")
    stream.put(note(1))
    stream.ack(stream.take(1, 1.0)[0])
    assert len(broker.link.client.xinfo_consumers(broker.keys.work, "actors")) == 1
    stream.close()
    assert broker.link.client.xinfo_consumers(broker.keys.work, "actors") == []


def test_a_consumer_that_restarts_under_its_name_gets_its_unfinished_messages_at_once(broker):
    """A process that restarts must not wait until the lease of its own earlier messages ends, which may be long."""
    former = broker.stream(broker.keys.work, "actors", "actor-0", lease_s=30.0)
    other = broker.stream(broker.keys.work, "actors", "actor-1", lease_s=30.0)
    for group in (1, 2):
        former.put(note(group))
    assert [delivery.message.group for delivery in (*former.take(1, 1.0), *other.take(1, 1.0))] == [1, 2]
    successor = broker.stream(broker.keys.work, "actors", "actor-0", lease_s=30.0)
    again = successor.take(5, 1.0)
    assert [(delivery.message.group, delivery.attempt) for delivery in again] == [(1, 2)]


def test_an_emptied_redis_has_nothing_outstanding(server, broker):
    stream = broker.stream(broker.keys.work, "actors")
    stream.put(note(1))
    assert stream.outstanding() == 1
    server.restart()
    assert stream.outstanding() == 0


def test_a_redis_that_restarts_from_its_append_only_file_loses_nothing_that_was_put(tmp_path):
    with OwnRedis(tmp_path) as server:
        broker = RedisBroker(server.url, "run")
        stream = broker.stream(broker.keys.work, "actors", "actor-0", lease_s=30.0)
        for group in range(50):
            stream.put(note(group))
            if group % 10 == 9:
                server.kill()
                server.start()
        held = stream.take(20, 1.0)
        stream.ack(held[0])
        server.kill()
        server.start()
        stream.ack(held[1])
        rest = broker.stream(broker.keys.work, "actors", "actor-0", lease_s=30.0).take(100, 1.0)
        fresh = stream.take(100, 1.0)
        assert [delivery.message.group for delivery in (*rest, *fresh)] == list(range(2, 50))
        broker.close()


def test_a_message_whose_delivery_got_lost_is_delivered_again_at_once(server, broker):
    """Redis lists the message as pending for a consumer that never received it, so nothing would renew or end its lease."""
    stream = broker.stream(broker.keys.work, "actors", "actor-0", lease_s=30.0)
    for group in (1, 2):
        stream.put(note(group))
    (held,) = stream.take(1, 1.0)
    entries = ("STREAMS", broker.keys.work, ">")
    broker.link.client.execute_command("XREADGROUP", "GROUP", "actors", "actor-0", "COUNT", 1, *entries)
    assert stream.take(5, 0.3) == []
    with RedisBroker(server.url, "other").link.client as operator:
        Timer(0.2, operator.execute_command, ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).start()
        (again,) = stream.take(5, 10.0)
    assert (again.message.group, again.attempt) == (2, 2)
    stream.ack(held)
    assert broker.link.retries >= 1


class Deafened:
    """A proxy between a client and its server; after `deafen`, the answer to the next command with ``word`` is lost."""

    def __init__(self, port: int) -> None:
        self._server, self._word = port, b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        Thread(target=self._accept, daemon=True).start()

    def deafen(self, word: bytes) -> None:
        self._word = word

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._server)) as server:
            while data := client.recv(1 << 16):
                server.sendall(data)
                answer = server.recv(1 << 16)
                if self._word and self._word in data:
                    self._word = b""
                    return
                client.sendall(answer)


def test_a_put_whose_answer_got_lost_is_not_put_twice(server):
    parts = urlsplit(server.url)
    deafened = Deafened(parts.port)
    broker = RedisBroker(server.url.replace(str(parts.port), str(deafened.port)), "run")
    stream = broker.stream(broker.keys.work)
    for group, word in enumerate((b"XADD", b"", b"XADD")):
        deafened.deafen(word)
        stream.put(note(group))
    assert broker.link.retries == 2
    reader = RedisBroker(server.url, "run")
    taken = reader.stream(reader.keys.work, "actors").take(9, 1.0)
    assert [delivery.message.group for delivery in taken] == [0, 1, 2]
