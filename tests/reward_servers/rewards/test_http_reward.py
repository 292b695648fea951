"""`HttpReward` against a real HTTP server on a loopback port: valid answers are scores, other answers mask the samples."""

from __future__ import annotations

import base64
import io
import json
import logging
import math
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import numpy as np
import pytest
from PIL import Image

from drover.common.errors import ConfigError, ScoringFailed
from drover.common.prompts import Prompt
from drover.common.protocols import Scores
from drover.reward_servers.rewards.http_reward import Breaker, HttpReward
from tests.reward_servers.http.asking import Asking

MEDIA = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)
PROMPTS = ["a", "bb", "ccc", 'a "d" \u00e9 \u732b', "e" * 50]
JSON = "application/json"
TOKEN = "s3cret-0123456789abcdef"
REASONS_WANTED = ["reply"] * 5

Answer = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


@dataclass
class Endpoint:
    """A server that answers the first requests as ``script`` says and the later ones rightly."""

    url: str = ""
    script: list[Answer] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    sent: int = 0  # bytes of a flood that went out


def respond(handler: BaseHTTPRequestHandler, status: int, body: bytes, kind: str = JSON) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def truth(request: dict[str, Any]) -> list[float]:
    """The right values: the length of each prompt plus the brightness, 0 to 1, of the picture that arrived."""
    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(image)))) for image in request["images"]]
    assert all(image.shape == (8, 6, 3) for image in images)
    return [len(p) + float(image.mean()) / 255 for p, image in zip(request["prompts"], images, strict=True)]


def right(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
    respond(handler, 200, json.dumps({"values": truth(request)}).encode())


def says(body: str | bytes, status: int = 200, kind: str = JSON) -> Answer:
    data = body.encode() if isinstance(body, str) else body
    return lambda handler, request: respond(handler, status, data, kind)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    end = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            end.requests.append(request)
            end.tokens.append(self.headers["Authorization"])
            answer = end.script.pop(0) if end.script else right
            try:
                answer(self, request)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    end.url = f"http://127.0.0.1:{server.server_port}/score"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield end
    server.shutdown()
    thread.join()
    server.server_close()


def scorer(endpoint: Endpoint, **options: Any) -> Asking:
    settings: dict[str, Any] = {"timeout_s": 10.0, "retries": 2, "backoff_s": 0.01} | options
    return Asking(HttpReward("taste", endpoint.url, **settings))


def wanted() -> list[float]:
    return [len(p) + float(image.mean()) / 255 for p, image in zip(PROMPTS, MEDIA, strict=True)]


def assert_masked(scores: Scores, words: list[str]) -> None:
    assert scores.reasons == words
    assert [math.isnan(value) for value in scores.values] == [word != "" for word in words]


def test_values_are_those_of_the_endpoint_for_exactly_these_pixels_and_prompts(endpoint: Endpoint) -> None:
    scores = scorer(endpoint)(PROMPTS, MEDIA)
    assert list(scores.values) == wanted() and scores.reasons == [""] * 5
    assert endpoint.requests[0]["prompts"] == PROMPTS and endpoint.tokens == [None]


def test_many_samples_go_in_requests_of_the_batch_size_and_come_back_in_order(endpoint: Endpoint) -> None:
    ask = scorer(endpoint, batch_size=2)
    assert list(ask(PROMPTS, MEDIA).values) == wanted()
    assert [len(request["images"]) for request in endpoint.requests] == [2, 2, 1]
    assert (ask.requests, ask.retried) == (3, 0)


def test_requests_are_cut_between_sets_and_a_set_larger_than_the_batch_goes_whole(endpoint: Endpoint) -> None:
    ask, media = scorer(endpoint, batch_size=4), MEDIA[[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]]
    prompts = ["a"] * 3 + ["b"] * 3 + ["c"] * 5 + ["d"]
    assert ask(prompts, media, [3, 3, 5, 1]).reasons == [""] * 12
    assert [request["sets"] for request in endpoint.requests] == [[3], [3], [5], [1]]
    assert ask(prompts, media, [1, 2, 1, 2, 5, 1]).reasons == [""] * 12
    assert [request["sets"] for request in endpoint.requests[4:]] == [[1, 2, 1], [2], [5], [1]]
    assert [request["prompts"] for request in endpoint.requests[4:6]] == [["a", "a", "a", "b"], ["b", "b"]]


def test_fields_go_with_their_prompts_and_without_any_nothing_is_said_of_them(endpoint: Endpoint) -> None:
    ask = scorer(endpoint)
    ask([Prompt("a", {"count": 2}), Prompt("b")], MEDIA[:2])
    ask(["a", "b"], MEDIA[:2])
    assert endpoint.requests[0]["fields"] == [{"count": 2}, {}] and "fields" not in endpoint.requests[1]


MATRIX = {"dtype": "float32", "shape": [2, 1], "data": base64.b64encode(np.array([1, 2], "<f4").tobytes()).decode()}
BESIDE = {"values": [1, 2], "uncertainty": [0.5, None], "parts": MATRIX}


def test_uncertainty_and_parts_are_nan_for_the_samples_of_a_failed_request(endpoint: Endpoint) -> None:
    endpoint.script = [says(json.dumps(BESIDE)), says("{"), says(json.dumps(BESIDE))]
    scores = scorer(endpoint, batch_size=2)(PROMPTS[:2] * 3, MEDIA[[0, 1] * 3])
    assert_masked(scores, ["", "", "reply", "reply", "", ""])
    assert str(scores.uncertainty) == "[0.5, nan, nan, nan, 0.5, nan]"
    np.testing.assert_array_equal(scores.parts, [[1], [2], [math.nan], [math.nan], [1], [2]])
    assert scores.features is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"uncertainty": [0.5]},
        {"uncertainty": [0.5, "x"]},
        {"parts": [[1], [2]]},
        {"parts": {**MATRIX, "dtype": "uint8"}},
        {"parts": {**MATRIX, "shape": [1, 2]}},
        {"features": {**MATRIX, "shape": [2, 2]}},
        {"features": {**MATRIX, "data": "?"}},
    ],
)
def test_numbers_beside_the_values_of_another_form_mask_the_request(endpoint: Endpoint, wrong: dict[str, Any]) -> None:
    endpoint.script = [says(json.dumps({**BESIDE, **wrong}))]
    assert_masked(scorer(endpoint)(PROMPTS[:2], MEDIA[:2]), ["reply"] * 2)


def test_parts_that_are_not_equally_many_in_all_requests_lose_the_call(endpoint: Endpoint) -> None:
    wide = {**MATRIX, "shape": [1, 2]}
    endpoint.script = [says(json.dumps(BESIDE)), says(json.dumps({"values": [1], "parts": wide}))]
    with pytest.raises(ScoringFailed, match="the endpoint's parts have the shapes"):
        scorer(endpoint, batch_size=2)(PROMPTS[:3], MEDIA[:3])


def test_a_failed_request_masks_its_own_samples_alone(endpoint: Endpoint) -> None:
    endpoint.script = [right, says("{", 200)]
    scores = scorer(endpoint, batch_size=2)(PROMPTS, MEDIA)
    assert_masked(scores, ["", "", "reply", "reply", ""])
    assert [scores.values[i] for i in (0, 1, 4)] == [wanted()[i] for i in (0, 1, 4)]


@pytest.mark.parametrize(
    "answer",
    [
        says(""),
        says("values: 1, 2"),
        says(b"\xff\xfe\x00{"),
        says("[" * 4000),
        says("[1, 2, 3, 4, 5]"),
        says('{"value": [1, 2, 3, 4, 5]}'),
        says('{"values": [1, 2, 3, 4]}'),
        says('{"values": [1, 2, 3, 4, 5, 6]}'),
        says('{"values": {"0": 1}}'),
        says('{"values": [1, 2, 3, 4, "5"]}'),
        says('{"values": [1, 2, 3, 4, true]}'),
        says('{"values": [1, 2, 3, 4, [5]]}'),
        says('{"values": [1, 2, 3, 4, 5], "reasons": [""]}'),
        says('{"values": [1, 2, 3, 4, 5], "reasons": ["", "", "", "", 0]}'),
        says('{"values": [1, 2, 3, 4, 5]}', kind="text/html"),
        says('{"values": [1, 2, 3, 4, 5]}', kind=""),
    ],
)
def test_an_answer_of_another_form_masks_all_its_samples_and_is_not_asked_for_again(
    endpoint: Endpoint, answer: Answer
) -> None:
    endpoint.script = [answer]
    ask = scorer(endpoint)
    assert_masked(ask(PROMPTS, MEDIA), REASONS_WANTED)
    assert ask.requests == 1
    assert list(ask(PROMPTS, MEDIA).values) == wanted()


def test_numbers_that_are_none_mask_only_themselves(endpoint: Endpoint) -> None:
    endpoint.script = [says('{"values": [1, NaN, null, -Infinity, %s]}' % ("9" * 400))]
    scores = scorer(endpoint)(PROMPTS, MEDIA)
    assert_masked(scores, ["", "nan", "nan", "nan", "nan"])
    assert scores.values[0] == 1.0


def test_the_endpoints_own_words_mask_even_where_a_value_stands(endpoint: Endpoint) -> None:
    reasons = ["", "blurred", "Bad word!", "x" * 33, ""]
    endpoint.script = [says(json.dumps({"values": [1, 2, 3, 4, 5], "reasons": reasons, "took_ms": 3}))]
    scores = scorer(endpoint)(PROMPTS, MEDIA)
    assert_masked(scores, ["", "blurred", "remote", "remote", ""])
    assert (scores.values[0], scores.values[4]) == (1.0, 5.0)


def test_an_endpoint_that_invents_words_gets_sixteen_through(endpoint: Endpoint) -> None:
    ask = scorer(endpoint)
    heard: list[str] = []
    for call in range(5):
        words = [f"w{5 * call + i}" for i in range(5)]
        endpoint.script = [says(json.dumps({"values": [0] * 5, "reasons": words}))]
        heard += ask(PROMPTS, MEDIA).reasons or []
    assert heard == [f"w{i}" for i in range(16)] + ["remote"] * 9


def test_a_server_error_that_passes_costs_retries_and_no_sample(endpoint: Endpoint) -> None:
    endpoint.script = [says("busy", 503), says("oops", 500)]
    ask = scorer(endpoint)
    assert list(ask(PROMPTS, MEDIA).values) == wanted()
    assert (ask.requests, ask.retried) == (3, 2)


def test_retries_end_at_their_number_and_wait_twice_as_long_each_time(endpoint: Endpoint) -> None:
    endpoint.script = [says("busy", 503)] * 9
    ask = scorer(endpoint, retries=3, backoff_s=0.05)
    started = time.monotonic()
    assert_masked(ask(PROMPTS, MEDIA), ["http"] * 5)
    assert time.monotonic() - started >= 0.05 + 0.1 + 0.2
    assert (ask.requests, ask.retried) == (4, 3)


@pytest.mark.parametrize("status", [400, 401, 404, 413, 204])
def test_a_refusal_is_final(endpoint: Endpoint, status: int) -> None:
    endpoint.script = [says("", status)]
    ask = scorer(endpoint)
    assert_masked(ask(PROMPTS, MEDIA), ["http"] * 5)
    assert ask.requests == 1


def test_nobody_listening_is_http_after_the_retries() -> None:
    with socket.socket() as held:  # a port that the test holds and that has no listener
        held.bind(("127.0.0.1", 0))
        ask = scorer(Endpoint(url=f"http://127.0.0.1:{held.getsockname()[1]}/score"))
        assert_masked(ask(PROMPTS, MEDIA), ["http"] * 5)
    assert (ask.requests, ask.retried) == (3, 2)


def test_a_connection_that_breaks_off_in_the_reply_is_tried_again(endpoint: Endpoint) -> None:
    def breaks_off(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", JSON)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"values": [1, 2, 3, 4, 5]}')
        handler.close_connection = True

    endpoint.script = [breaks_off]
    ask = scorer(endpoint)
    assert list(ask(PROMPTS, MEDIA).values) == wanted()
    assert ask.retried == 1


def test_a_late_reply_is_a_timeout_and_is_never_taken_for_the_next_one(endpoint: Endpoint) -> None:
    def late(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        time.sleep(0.6)
        respond(handler, 200, b'{"values": [9, 9, 9, 9, 9]}')

    endpoint.script = [late]
    ask = scorer(endpoint, timeout_s=0.3, retries=0)
    assert_masked(ask(PROMPTS, MEDIA), ["timeout"] * 5)
    time.sleep(0.5)  # by now it has been written
    assert list(ask(PROMPTS, MEDIA).values) == wanted()


def drip(handler: BaseHTTPRequestHandler, block: bytes, finished: list[bool]) -> None:
    """Send an answer of twenty seconds in small pieces, as long as the connection is open."""
    for _ in range(1000):
        handler.wfile.write(block)
        handler.wfile.flush()
        time.sleep(0.02)
    finished.append(True)


def test_a_reply_that_drips_in_is_given_up(endpoint: Endpoint) -> None:
    def drips(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", JSON)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        drip(handler, b" ", finished)

    finished: list[bool] = []
    endpoint.script = [drips]
    assert_masked(scorer(endpoint, timeout_s=0.3, retries=0)(PROMPTS, MEDIA), ["timeout"] * 5)
    assert not finished


def test_an_endpoint_that_says_continue_for_ever_is_given_up_in_time(endpoint: Endpoint) -> None:
    def goes_on(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        with suppress(OSError):
            drip(handler, b"HTTP/1.1 100 Continue\r\n\r\n", finished)

    finished: list[bool] = []
    endpoint.script = [goes_on]
    ask = scorer(endpoint, timeout_s=0.3, retries=0)
    assert_masked(ask(PROMPTS, MEDIA), ["timeout"] * 5)
    assert not finished
    assert list(ask(PROMPTS, MEDIA).values) == wanted()


def flood(endpoint: Endpoint, declared: bool) -> Answer:
    def answer(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", JSON)
        if declared:
            handler.send_header("Content-Length", str(10**12))
        else:
            handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        block = b" " * 65536
        while endpoint.sent < 1 << 30:
            handler.wfile.write(block if declared else b"10000\r\n" + block + b"\r\n")
            endpoint.sent += len(block)

    return answer


@pytest.mark.parametrize("declared", [True, False])
def test_a_huge_reply_is_refused_after_its_first_kilobytes(endpoint: Endpoint, declared: bool) -> None:
    endpoint.script = [flood(endpoint, declared)]
    ask = scorer(endpoint)
    assert_masked(ask(PROMPTS, MEDIA), REASONS_WANTED)
    time.sleep(0.1)
    assert endpoint.sent < 1 << 25  # the bytes that the kernel's buffers took before the connection was closed
    assert list(ask(PROMPTS, MEDIA).values) == wanted()


def test_a_redirect_is_not_followed_so_the_token_goes_nowhere_else(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        handler.send_response(307)
        handler.send_header("Location", endpoint.url + "/elsewhere")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    monkeypatch.setenv("TASTE_TOKEN", TOKEN)
    endpoint.script = [elsewhere]
    assert_masked(scorer(endpoint, token_variable="TASTE_TOKEN")(PROMPTS, MEDIA), ["http"] * 5)
    assert len(endpoint.requests) == 1


def test_after_so_many_failures_in_a_row_the_endpoint_is_left_in_peace_and_then_tried_once(endpoint: Endpoint) -> None:
    endpoint.script = [says("down", 503)] * 4
    ask = scorer(endpoint, retries=10, breaker_failures=3, breaker_s=0.4)
    assert_masked(ask(PROMPTS, MEDIA), ["http"] * 5)
    assert ask.requests == 3  # the fourth try is not made: the breaker is open
    assert_masked(ask(PROMPTS, MEDIA), ["breaker"] * 5)
    assert len(endpoint.requests) == 3
    time.sleep(0.45)
    assert_masked(ask(PROMPTS, MEDIA), ["http"] * 5)  # one trial, which fails
    assert_masked(ask(PROMPTS, MEDIA), ["breaker"] * 5)
    assert len(endpoint.requests) == 4
    time.sleep(0.45)
    assert list(ask(PROMPTS, MEDIA).values) == wanted()
    endpoint.script = [says("down", 503)] * 2  # closed again: it takes three once more
    assert list(ask(PROMPTS, MEDIA).values) == wanted()


def test_a_breaker_counts_failures_in_a_row_only() -> None:
    breaker = Breaker(failures=2, pause_s=10.0)
    breaker.failed(0.0)
    breaker.succeeded()
    breaker.failed(1.0)
    assert breaker.lets_through(1.0)
    breaker.failed(2.0)
    assert [breaker.lets_through(now) for now in (2.0, 11.9, 12.0)] == [False, False, True]
    breaker.failed(12.5)
    assert [breaker.lets_through(now) for now in (12.5, 22.4, 22.5)] == [False, False, True]


def test_the_token_is_sent_and_appears_nowhere_else(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TASTE_TOKEN", TOKEN)
    reward = HttpReward("taste", endpoint.url, token_variable="TASTE_TOKEN", retries=1, backoff_s=0.01, timeout_s=0.3)
    endpoint.script = [
        right,
        says("", 500),
        says("", 401),
        says("not json"),
        lambda handler, request: time.sleep(0.5),
    ]
    with caplog.at_level(logging.DEBUG):
        ask = Asking(reward)
        scores = [ask(PROMPTS, MEDIA) for _ in range(4)]
    assert set(endpoint.tokens) == {f"Bearer {TOKEN}"} and len(endpoint.tokens) >= 5
    assert len([record for record in caplog.records if record.name.endswith("http_reward")]) == 4
    assert "answered 401" in caplog.text and "not JSON" in caplog.text
    for text in (caplog.text, repr(reward), repr(ask), str(scores), repr(ask.scorer.breaker)):
        assert TOKEN not in text


@pytest.mark.parametrize(
    ("token", "state"),
    [(None, "is not set"), ("", "is not set"), (f"{TOKEN}\r\nX: y", "holds spaces"), (f"{TOKEN} z", "holds spaces")],
)
def test_a_token_that_cannot_be_sent_is_found_at_start_up_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, token: str | None, state: str
) -> None:
    monkeypatch.delenv("TASTE_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("TASTE_TOKEN", token)
    with pytest.raises(ConfigError, match=f"TASTE_TOKEN, which {state}") as caught:
        HttpReward("taste", "https://taste.example/score", token_variable="TASTE_TOKEN").load("cpu")
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["", "taste.example/score", "ftp://a/b", "http://", "http://a:99999/b", "http://[::1/b"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="wants a url like https://host/score"):
        HttpReward("taste", url)


def test_a_password_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="use token_variable") as caught:
        HttpReward("taste", f"https://me:{TOKEN}@taste.example/score")
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    "option",
    [
        {"retries": -1},
        {"retries": 11},
        {"batch_size": 0},
        {"breaker_failures": 0},
        {"timeout_s": 0.0},
        {"backoff_s": math.nan},
        {"breaker_s": math.inf},
        {"media": "pictures"},
    ],
)
def test_options_out_of_range_are_refused_by_name(option: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        HttpReward("taste", "https://taste.example/score", **option)  # type: ignore[arg-type]
