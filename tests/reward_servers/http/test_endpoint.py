"""`drover serve` on a loopback port: who is answered, with what, and what slow, greedy or many callers cost."""

from __future__ import annotations

import io
import json
import logging
import math
import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from drover.common.errors import ConfigError
from drover.common.metrics import NullMeter
from drover.common.protocols import Scores
from drover.reward_servers.http import endpoint as module
from drover.reward_servers.http.body import Limits, as_sets
from drover.reward_servers.http.endpoint import Endpoint
from drover.reward_servers.http.window import Window
from drover.reward_servers.rewards.http_reward import HttpReward, HttpScorer
from drover.reward_servers.rewards.jpeg_size import JpegSize
from tests.common.transport.tls import make_certificates
from tests.fuzz.http_inputs import TOKEN, body_of, exchange, png, request
from tests.reward_servers.serving.desk import Brightness, until

MEDIA = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)


@contextmanager
def served(scorer: object, *, limits: Limits | None = None, deadline_s: float = 10.0, tls=None) -> Iterator[Endpoint]:
    window = Window("brightness", scorer, NullMeter(), max_batch=8, deadline_s=deadline_s)
    with window, Endpoint(("127.0.0.1", 0), TOKEN, window.score, limits=limits, tls=tls) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TASTE_TOKEN", TOKEN)

    def make(server: Endpoint, scheme: str = "http", **options) -> HttpScorer:
        url = f"{scheme}://127.0.0.1:{server.server_port}/score"
        settings = {"retries": 0, "timeout_s": 20.0, "token_variable": "TASTE_TOKEN"} | options
        return HttpReward("taste", url, **settings).load("cpu")

    return make


def answer(server: Endpoint, data: bytes) -> tuple[int, dict]:
    head, _, body = exchange(server.server_port, data).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def test_a_run_elsewhere_gets_the_values_that_the_reward_itself_gives(ask) -> None:
    with served(JpegSize().load("cpu")) as server:
        scores = ask(server)(["a"] * 5, MEDIA)
    assert list(scores.values) == list(JpegSize().load("cpu")(["a"] * 5, MEDIA).values)
    assert scores.reasons == [""] * 5


def test_a_poisoned_request_spoils_no_other_and_masks_arrive_with_their_reasons(ask) -> None:
    with served(Brightness()) as server:
        scores = ask(server)(["a", "nan", "refused", "a", "a"], MEDIA)
        assert list(scores.reasons) == ["", "nan", "refused", "", ""]
        assert [math.isnan(value) for value in scores.values] == [False, True, True, False, False]
        assert list(ask(server)(["raise"], MEDIA[:1]).reasons) == ["error"]
        assert list(ask(server)(["a"], MEDIA[:1]).values) == [float(MEDIA[0, ..., 0].mean())]


def test_callers_share_the_scorers_calls_and_each_gets_its_own_samples(ask) -> None:
    scorer = Brightness()
    with served(scorer) as server, ThreadPoolExecutor(12) as callers:
        scorer.gate.clear()
        first = callers.submit(ask(server), ["first"], MEDIA[:1])
        while not scorer.calls:
            time.sleep(0.01)
        rest = [callers.submit(ask(server), ["x"], MEDIA[row % 5 : row % 5 + 1]) for row in range(8)]
        while server_waits(server) < 9:
            time.sleep(0.01)
        scorer.gate.set()
        assert first.result().reasons == [""]
        assert [end.result().values[0] for end in rest] == [float(MEDIA[row % 5, ..., 0].mean()) for row in range(8)]
    assert sum(scorer.calls) == 9 and len(scorer.calls) <= 4, scorer.calls


def server_waits(server: Endpoint) -> int:
    """Requests that wait for their scores."""
    return len(server.score.__self__._waiting)  # type: ignore[attr-defined]


def test_a_scorer_that_hangs_masks_what_it_was_given_and_the_next_request_is_answered(ask) -> None:
    scorer = Brightness()
    with served(scorer, deadline_s=0.3) as server:
        assert list(ask(server)(["hang"], MEDIA[:1]).reasons) == ["timeout"]
        assert list(ask(server)(["a"], MEDIA[:1]).reasons) == [""]
        scorer.wake.set()


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", TOKEN[:-1], TOKEN.upper()])
def test_without_the_token_nothing_is_read_and_nothing_is_scored(token: str, caplog: pytest.LogCaptureFixture) -> None:
    scorer = Brightness()
    with served(scorer) as server, caplog.at_level(logging.DEBUG):
        # A body that never comes is not waited for.
        status, said = answer(server, request(b"", length=1_000_000, token=token))
    assert (status, said) == (401, {"error": "wants the header Authorization: Bearer TOKEN"})
    assert scorer.calls == []
    assert "with 401 so far" in caplog.text and TOKEN not in caplog.text and "wrong" not in caplog.text


def test_health_is_for_everybody_and_says_nothing_else() -> None:
    with served(Brightness()) as server:
        assert answer(server, b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n") == (200, {"status": "ok"})


def packed_text() -> bytes:
    """A picture beside 4 MB of text in some kB, which PIL would unpack to look at its size."""
    text, file = PngInfo(), io.BytesIO()
    for number in range(4):
        text.add_itxt(f"note {number}", "\U0001f308" * 250_000, zip=True)
    Image.fromarray(MEDIA[0]).save(file, format="PNG", pnginfo=text)
    return file.getvalue()


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"[]", 400, "must be an object"),
        (b"{", 400, "not JSON"),
        (b'{"prompts": ["a"], "images": []}', 400, "equally many"),
        (b'{"prompts": [], "images": []}', 400, "at least one"),
        (b'{"prompts": ["\\ud800"], "images": [""]}', 400, "half a character"),
        (b'{"prompts": ["a"], "images": ["?"]}', 400, "not base64"),
        (b'{"prompts": ["a"], "images": ["aGk="]}', 400, "not a PNG"),
        (body_of([png(MEDIA[0], "RGBA")]), 400, "must be RGB"),
        (body_of([png(MEDIA[0])[:60]]), 400, "damaged PNG"),
        (body_of([packed_text()]), 400, "images[0] holds packed text"),
        (body_of([png(MEDIA[0]), png(MEDIA[0, :4])]), 400, "equally large"),
        (body_of([png(MEDIA[0])] * 5), 413, "pass 200 pixels"),
        (body_of([png(MEDIA[0, :1, :1])] * 9), 413, "may bring 8 samples, got 9"),
        (b'{"prompts": ["' + b"a" * 51 + b'"], "images": [""]}', 413, "50 characters"),
        (b"[" * 250_000, 413, "brackets and commas"),
    ],
)  # fmt: skip
def test_what_is_not_a_request_is_refused_with_the_reason(body: bytes, status: int, said: str) -> None:
    limits = Limits(pixels=200, samples=8, prompt_characters=50, body_bytes=1 << 20)
    with served(Brightness(), limits=limits) as server:
        found, error = answer(server, request(body))
    assert found == status and said in error["error"]


def test_a_body_that_is_too_large_is_refused_unread() -> None:
    with served(Brightness(), limits=Limits(body_bytes=1000)) as server:
        assert answer(server, request(b"", length=1001))[0] == 413


def test_more_bytes_than_may_be_held_are_told_to_come_back_and_none_are_lost_count_of() -> None:
    body = body_of([png(MEDIA[0])])
    with served(Brightness(), limits=Limits(held_bytes=3 * len(body) - 1)) as server:
        assert answer(server, request(body)) == (503, {"error": "busy; ask again"})
    with served(Brightness(), limits=Limits(held_bytes=3 * len(body) + 3 * MEDIA[0].nbytes)) as server:
        for _ in range(5):
            assert answer(server, request(body))[0] == 200
            assert answer(server, request(b"{"))[0] == 400
        assert server._held_bytes == 0


def test_one_that_drips_is_cut_off_and_meanwhile_others_are_answered(ask) -> None:
    good = request(body_of([png(MEDIA[0])]))
    stop = Event()
    with served(Brightness(), limits=Limits(request_s=1.0, idle_s=1.0)) as server:
        slow = [socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(8)]

        def drip() -> None:
            for byte in good[:-1]:
                if stop.wait(0.05):
                    return
                for connection in slow[:4]:  # the others say nothing at all
                    with suppress(OSError):
                        connection.sendall(bytes([byte]))

        dripping = Thread(target=drip)
        dripping.start()
        assert list(ask(server)(["a"], MEDIA[:1]).reasons) == [""]
        for connection in slow:
            connection.settimeout(20.0)
            with suppress(ConnectionResetError):
                assert connection.recv(1) == b""
        stop.set()
        dripping.join()
        until(lambda: len(server._ends_s) <= 1)  # that of the good one, which its caller keeps


def test_so_many_connections_and_no_more(ask) -> None:
    with served(Brightness(), limits=Limits(connections=2)) as server:
        held = [socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(2)]
        time.sleep(0.2)
        # Told so, unless the connection was closed before the caller had said all he wanted.
        assert exchange(server.server_port, b"GET /health HTTP/1.1\r\n\r\n")[:17] in (b"", b"HTTP/1.1 503 Busy")
        for connection in held:
            connection.close()
        patient = ask(server, retries=10, backoff_s=0.05)
        assert list(patient(["a"], MEDIA[:1]).reasons) == [""]


def test_requests_follow_each_other_on_one_connection() -> None:
    good = request(body_of([png(MEDIA[0])]))
    with served(Brightness()) as server:
        assert exchange(server.server_port, good * 3).count(b"HTTP/1.1 200 OK") == 3


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl")
def test_https_with_a_private_ca(ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificates = make_certificates(tmp_path)
    with served(Brightness(), limits=Limits(request_s=1.0), tls=certificates.server_side()) as server:
        assert list(ask(server, "https")(["a"], MEDIA[:1]).reasons) == ["http"]  # nobody knows this CA
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca))
        assert list(ask(server, "https")(["a"], MEDIA[:1]).reasons) == [""]
        with socket.create_connection(("127.0.0.1", server.server_port)) as silent:  # never begins its handshake
            silent.settimeout(20.0)
            assert list(ask(server, "https")(["a"], MEDIA[:1]).reasons) == [""]
            assert silent.recv(1) == b""
        assert exchange(server.server_port, b"GET /health HTTP/1.1\r\n\r\n")[:4] != b"HTTP"  # no plain HTTP there


def test_it_does_not_start_without_a_token_or_where_it_cannot_listen() -> None:
    with pytest.raises(ConfigError, match="set DROVER_REWARD_TOKEN"):
        Endpoint(("127.0.0.1", 0), "", lambda prompts, media, wait_s: Scores([]))
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.77:80"):
        Endpoint(("192.0.2.77", 80), TOKEN, lambda prompts, media, wait_s: Scores([]))


@pytest.mark.parametrize(
    ("prompts", "wanted"),
    [
        (["a", "a", "b", "b"], (("a", "b"), 2)),
        (["a", "a", "b"], (("a", "a", "b"), 1)),
        (["a", "b"], (("a", "b"), 1)),
        (["a"] * 3, (("a",), 3)),
    ],
)
def test_equal_prompts_that_follow_each_other_are_one_set(prompts: list[str], wanted: tuple) -> None:
    assert as_sets(prompts) == wanted


def test_limits_of_a_head() -> None:
    with served(Brightness()) as server:
        assert answer(server, request(b"", extra=b"X: " + b"y" * module.HEAD_BYTES + b"\r\n"))[0] == 431
        assert answer(server, request(b"", extra=b"Transfer-Encoding: chunked\r\n"))[0] == 411
        assert answer(server, request(b"", extra=b"Content-Length: 0\r\n"))[0] == 411
