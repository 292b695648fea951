"""Every `BlobStore` keeps these promises: in memory, on one Redis, and spread over two."""

import time
from collections.abc import Iterator

import pytest

from drover.common.errors import BlobMissing
from drover.common.transport.broker import Broker
from drover.common.transport.embedded import EmbeddedRedis
from drover.common.transport.memory import MemoryBroker
from drover.common.transport.redis_broker import RedisBroker

CONTENT = bytes(range(256)) * 1024
LIFETIME_S = 0.6


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(max_memory_bytes=64 << 20) as server:
        yield server


@pytest.fixture(scope="module")
def second() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(max_memory_bytes=64 << 20) as server:
        yield server


SERVERS = {"memory": (), "redis": ("server",), "two redis": ("server", "second")}


@pytest.fixture(params=["memory", *(pytest.param(name, marks=pytest.mark.service) for name in ("redis", "two redis"))])
def open_broker(request: pytest.FixtureRequest):
    opened: list[Broker] = []

    def open_run(run: str, **options) -> Broker:
        name = f"{run}-{time.time_ns()}"
        urls = " ".join(request.getfixturevalue(server).url for server in SERVERS[request.param])
        opened.append(RedisBroker(urls, name, **options) if urls else MemoryBroker(name, **options))
        return opened[-1]

    yield open_run
    for broker in opened:
        broker.close()


@pytest.fixture
def blobs(open_broker):
    return open_broker("run").blobs()


def test_parts_come_back_as_one_blob(blobs):
    blobs.put("g1.1/latents", [CONTENT[:100], memoryview(CONTENT)[100:5000], CONTENT[5000:]])
    assert blobs.get("g1.1/latents") == CONTENT


def test_a_single_view_is_stored_as_its_bytes(blobs):
    blobs.put("view", [memoryview(CONTENT)])
    assert blobs.get("view") == CONTENT


@pytest.mark.parametrize(
    ("offset", "nbytes"), [(0, 1), (0, 4096), (777, 4096), (len(CONTENT) - 3, 3), (500, None), (9, 0)]
)
def test_a_range_is_that_slice(blobs, offset, nbytes):
    blobs.put("b", [CONTENT])
    assert blobs.get("b", offset, nbytes) == (CONTENT[offset:] if nbytes is None else CONTENT[offset : offset + nbytes])


@pytest.mark.parametrize(("offset", "nbytes"), [(0, None), (0, 16), (16, 16), (16, None)])
def test_a_blob_that_was_never_put_is_missing(blobs, offset, nbytes):
    with pytest.raises(BlobMissing, match="'nothing'"):
        blobs.get("nothing", offset, nbytes)


def test_asking_beyond_the_end_is_an_error_and_never_short(blobs):
    blobs.put("b", [b"0123456789"])
    with pytest.raises(BlobMissing, match="lacks bytes 8 to 12"):
        blobs.get("b", 8, 4)


def test_dropped_blobs_are_gone_and_dropping_again_is_harmless(blobs):
    for name in ("a", "b", "c"):
        blobs.put(name, [b"x"])
    blobs.drop(["a", "b"])
    blobs.drop(["a", "never"])
    blobs.drop([])
    assert blobs.get("c") == b"x"
    for name in ("a", "b"):
        with pytest.raises(BlobMissing):
            blobs.get(name)


def test_sweeping_drops_what_has_those_words_in_its_name_and_nothing_else(open_broker):
    blobs, other = open_broker("run").blobs(), open_broker("other").blobs()
    for name in ("7.train.0.1.actor-0/steps", "7.train.11.1.actor-1/media", "7.eval.0.1.actor-0/media"):
        blobs.put(name, [b"x"])
    other.put("7.train.0.1.actor-0/steps", [b"x"])
    blobs.sweep(".train.")
    for name in ("7.train.0.1.actor-0/steps", "7.train.11.1.actor-1/media"):
        with pytest.raises(BlobMissing):
            blobs.get(name)
    assert blobs.get("7.eval.0.1.actor-0/media") == b"x" == other.get("7.train.0.1.actor-0/steps")


def test_blobs_to_be_kept_are_not_swept(open_broker):
    blobs = open_broker("run").blobs()
    for name in ("7.eval.0.1.actor-0/media", "7.eval.0.1.actor-0/media.1", "7.eval.1.1.actor-0/media"):
        blobs.put(name, [b"x"])
    blobs.sweep(".eval.", keep={"7.eval.0.1.actor-0/media", "gone"})
    assert blobs.get("7.eval.0.1.actor-0/media") == b"x"
    for name in ("7.eval.0.1.actor-0/media.1", "7.eval.1.1.actor-0/media"):
        with pytest.raises(BlobMissing):
            blobs.get(name)


def test_putting_again_replaces(blobs):
    blobs.put("b", [b"old and longer"])
    blobs.put("b", [b"new"])
    assert blobs.get("b") == b"new"


def test_a_blob_outlives_its_reader_but_not_its_lifetime(open_broker):
    blobs = open_broker("run", blob_lifetime_s=LIFETIME_S).blobs()
    blobs.put("b", [b"x"])
    assert blobs.get("b") == b"x"
    time.sleep(LIFETIME_S + 0.2)
    with pytest.raises(BlobMissing, match="lifetime"):
        blobs.get("b")


def test_two_runs_do_not_meet(open_broker):
    red, blue = open_broker("red"), open_broker("blue")
    red.blobs().put("b", [b"red"])
    with pytest.raises(BlobMissing):
        blue.blobs().get("b")
    blue.blobs().put("b", [b"blue"])
    red.blobs().drop(["b"])
    assert blue.blobs().get("b") == b"blue"
    assert {red.keys.work, red.keys.dead, red.keys.blob("b")}.isdisjoint(
        {blue.keys.work, blue.keys.dead, blue.keys.blob("b")}
    )
