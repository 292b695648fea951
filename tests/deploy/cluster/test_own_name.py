"""Each start of a run has a name of its own in Redis. Its keys are deleted at its end, or at the next start if it was killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from drover.common.transport.embedded import EmbeddedRedis, connect
from drover.common.transport.redis_broker import RedisBroker
from drover.deploy.cluster.service import own_name

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(max_memory_bytes=64 << 20) as server:
        yield server


def put(server: EmbeddedRedis, name: str) -> None:
    broker = RedisBroker(server.url, name)
    broker.blobs().put("blob", [b"x"])
    broker.close()


def names(server: EmbeddedRedis) -> set[str]:
    with connect(server.url) as client:
        return {key.decode().split(":")[1] for key in client.scan_iter("drover:*")}


def test_every_start_has_a_name_of_its_own_whose_keys_end_with_it(server: EmbeddedRedis, tmp_path: Path) -> None:
    with own_name("blue", server.url, tmp_path) as first:
        put(server, first)
        (tmp_path / "other").mkdir()
        with own_name("blue", server.url, tmp_path / "other") as second:
            put(server, second)
            assert names(server) == {first, second}
        assert names(server) == {first}
    assert names(server) == set() and not (tmp_path / "redis_name.txt").exists()


def test_keys_of_a_killed_start_are_deleted_by_the_next_start_of_the_same_folder(
    server: EmbeddedRedis, tmp_path: Path
) -> None:
    killed = own_name("blue", server.url, tmp_path)
    left = killed.__enter__()
    put(server, left)
    put(server, "blue.00000000")  # another folder's
    with own_name("blue", server.url, tmp_path) as name:
        assert name != left and names(server) == {"blue.00000000"}


@pytest.mark.parametrize("note", ["", "*", "red.0a1b2c3d", "blue.*", "blue.0a1b2c3d:x"])
def test_a_note_that_is_not_of_this_run_deletes_nothing(server: EmbeddedRedis, tmp_path: Path, note: str) -> None:
    (tmp_path / "redis_name.txt").write_text(note)
    put(server, "red.0a1b2c3d")
    with own_name("blue", server.url, tmp_path):
        assert "red.0a1b2c3d" in names(server)
