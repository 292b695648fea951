"""`drover serve` on a loopback port: its answers to good and bad requests, and to slow, greedy or many callers."""

from __future__ import annotations

import base64
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
from drover.common.media.kinds import KINDS
from drover.common.media.media import Media, arrays
from drover.common.media.pictures import Pictures
from drover.common.metrics import NullMeter
from drover.common.prompts import Prompt
from drover.common.protocols import Scores
from drover.reward_servers.http import endpoint as module
from drover.reward_servers.http.endpoint import Endpoint
from drover.reward_servers.http.limits import Limits
from drover.reward_servers.http.window import Window
from drover.reward_servers.rewards.diversity import Diversity
from drover.reward_servers.rewards.http_reward import HttpReward
from drover.reward_servers.rewards.jpeg_size import JpegSize
from drover.reward_servers.rewards.statistical_parity import StatisticalParity
from drover.worlds.shapes.judges import Tones
from drover.worlds.shapes.renderer import render
from drover.worlds.shapes.scenes import random_portrait
from tests.common.media.made_up import one_of_each
from tests.common.transport.tls import make_certificates
from tests.fuzz.http_inputs import TOKEN, body_of, exchange, png, request
from tests.reward_servers.http.asking import Asking, slices
from tests.reward_servers.serving.desk import Brightness, until

MEDIA = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)


@contextmanager
def served(
    scorer: object, takes=Pictures, *, limits: Limits | None = None, deadline_s: float = 10.0, tls=None
) -> Iterator[Endpoint]:
    window = Window("brightness", scorer, NullMeter(), max_batch=8, deadline_s=deadline_s)
    with window, Endpoint(("127.0.0.1", 0), TOKEN, window.score, takes, limits=limits, tls=tls) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TASTE_TOKEN", TOKEN)

    def make(server: Endpoint, scheme: str = "http", **options) -> Asking:
        url = f"{scheme}://127.0.0.1:{server.server_port}/score"
        settings = {"retries": 0, "timeout_s": 20.0, "token_variable": "TASTE_TOKEN"} | options
        return Asking(HttpReward("taste", url, **settings))

    return make


def answer(server: Endpoint, data: bytes) -> tuple[int, dict]:
    head, _, body = exchange(server.server_port, data).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def test_a_run_elsewhere_gets_the_values_that_the_reward_itself_gives(ask) -> None:
    with served(JpegSize().load("cpu")) as server:
        scores = ask(server)(["a"] * 5, MEDIA)
    assert list(scores.values) == list(JpegSize().load("cpu")(["a"] * 5, Pictures(MEDIA)).values)
    assert scores.reasons == [""] * 5


def test_a_poisoned_request_spoils_no_other_and_masks_arrive_with_their_reasons(ask) -> None:
    with served(Brightness()) as server:
        scores = ask(server)(["a", "nan", "refused", "a", "a"], MEDIA)
        assert list(scores.reasons) == ["", "nan", "refused", "", ""]
        assert [math.isnan(value) for value in scores.values] == [False, True, True, False, False]
        assert list(ask(server)(["raise"], MEDIA[:1]).reasons) == ["error"]
        assert list(ask(server)(["a"], MEDIA[:1]).values) == [float(MEDIA[0, ..., 0].mean())]


def test_callers_share_the_scorers_calls_and_each_gets_its_own_samples(ask) -> None:
    scorer, asked = Brightness(), []
    with served(scorer) as server, ThreadPoolExecutor(12) as callers:
        score = server.score
        server.score = lambda request, wait_s: asked.append(request) or score(request, wait_s)
        scorer.gate.clear()
        first = callers.submit(ask(server), ["first"], MEDIA[:1])
        while not scorer.calls:
            time.sleep(0.01)
        rest = [callers.submit(ask(server), ["x"], MEDIA[row % 5 : row % 5 + 1]) for row in range(8)]
        until(lambda: len(asked) == 9)
        scorer.gate.set()
        assert first.result().reasons == [""]
        assert [end.result().values[0] for end in rest] == [float(MEDIA[row % 5, ..., 0].mean()) for row in range(8)]
    assert sum(scorer.calls) == 9 and len(scorer.calls) <= 4, scorer.calls


def test_a_scorer_that_hangs_masks_what_it_was_given_and_the_next_request_is_answered(ask) -> None:
    scorer = Brightness()
    with served(scorer, deadline_s=0.3) as server:
        assert list(ask(server)(["hang"], MEDIA[:1]).reasons) == ["timeout"]
        assert list(ask(server)(["a"], MEDIA[:1]).reasons) == [""]
        scorer.wake.set()


# ------------------------------------------------------------------------------------- sets, parts, other media


@pytest.mark.parametrize("sizes", [[100], [12] * 6, [5, 100, 7, 3]])
@pytest.mark.parametrize("reward", [StatisticalParity(Tones()), Diversity()])
def test_a_reward_over_sets_gives_behind_http_exactly_what_it_gives_here(ask, reward, sizes: list[int]) -> None:
    rng = np.random.default_rng(0)
    people = [render(random_portrait(rng, "doctor", int(tone))) for tone in rng.integers(0, 4, sum(sizes))]
    media, prompts = Pictures(np.stack(people)), [f"set {n}" for n, size in enumerate(sizes) for _ in range(size)]
    here = reward.load("cpu").score_sets(prompts, media, slices(sizes))
    with served(reward.load("cpu")) as server:
        there = ask(server)(prompts, media, sizes)
    assert list(there.values) == list(here.values) and list(there.reasons) == list(here.reasons)


class Thorough:
    """A scorer for media of any kind whose values are sums of the media and of the prompts' fields."""

    def __call__(self, prompts, media) -> Scores:
        (rows,) = arrays(media).values()
        sums = rows.reshape(len(media), -1).astype(np.float32).sum(axis=1)
        counts = [float(prompt.fields.get("count", -1)) for prompt in prompts]
        features = np.stack([sums, sums / 3, np.full_like(sums, 1e-30)], axis=1)
        return Scores(counts, [""] * len(media), (sums / 7).tolist(), parts=features[:, :2], features=features)


@pytest.mark.parametrize("media", one_of_each(4), ids=KINDS)
def test_media_of_every_kind_cross_with_fields_and_all_numbers_come_back_to_the_bit(ask, media: Media) -> None:
    prompts = [Prompt("a", {"count": 3, "objects": ["cat"]})] * 2 + [Prompt("b"), Prompt("c", {"count": 5})]
    here = Thorough()(prompts, media)
    with served(Thorough(), type(media)) as server:
        there = ask(server, media=media.kind, batch_size=2)(prompts, media, [2, 1, 1])
    assert list(there.values) == [3.0, 3.0, -1.0, 5.0]
    assert list(there.uncertainty) == list(here.uncertainty)
    for name in ("parts", "features"):
        assert getattr(there, name).tobytes() == getattr(here, name).tobytes()


def test_a_reward_of_one_kind_refuses_media_of_another_with_the_kind_it_takes(ask, caplog) -> None:
    sounds = one_of_each(2)[2]
    with served(Brightness()) as server, caplog.at_level(logging.WARNING):
        assert list(ask(server, media="sound")(["a", "b"], sounds).reasons) == ["http"] * 2
    assert "takes media of the kind 'picture', got 'sound'" in caplog.text


def test_without_sizes_every_sample_is_judged_alone() -> None:
    body = body_of([png(picture) for picture in MEDIA])
    with served(Diversity().load("cpu")) as server:
        assert answer(server, request(body))[1]["reasons"] == ["few"] * 5


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", TOKEN[:-1], TOKEN.upper()])
def test_without_the_token_nothing_is_read_and_nothing_is_scored(token: str, caplog: pytest.LogCaptureFixture) -> None:
    scorer = Brightness()
    with served(scorer) as server, caplog.at_level(logging.DEBUG):
        # The server does not wait for a body that never comes.
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


def media_of(kind: str, facts: dict, **arrays: tuple) -> bytes:
    """A request of one sample; an array is its dtype, shape and, where that is wrong, its bytes."""
    plain = {}
    for name, (dtype, shape, *nbytes) in arrays.items():
        size = nbytes[0] if nbytes else min(math.prod(shape) * {"uint8": 1, "float32": 4}.get(dtype, 1), 1 << 10)
        plain[name] = {"dtype": dtype, "shape": shape, "data": base64.b64encode(bytes(size)).decode()}
    return json.dumps({"prompts": ["a"], "media": {"kind": kind, "facts": facts, "arrays": plain}}).encode()


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"[]", 400, "must be an object"),
        (b"{", 400, "not JSON"),
        (b'{"prompts": ["a"], "images": []}', 400, "a picture for each prompt"),
        (b'{"prompts": [], "images": []}', 400, "at least one"),
        (b'{"prompts": ["a"]}', 400, "images must be a list of strings"),
        (body_of([png(MEDIA[0])], sets=[2]), 400, "add up to the 1 samples"),
        (body_of([png(MEDIA[0])], sets=[True]), 400, "sets must be sizes above 0"),
        (body_of([png(MEDIA[0])] * 2, sets=[2], prompts=["a", "b"]), 400, "all samples of a set have one prompt"),
        (body_of([png(MEDIA[0])] * 2, sets=[2], fields=[{"n": 1}, {"n": 2}]), 400, "with the same fields"),
        (body_of([png(MEDIA[0])], fields=[]), 400, "fields must be a list of 1 objects"),
        (body_of([png(MEDIA[0])], fields=[{"a": {"b": 1}}]), 400, "field 'a' of prompt 'a' is a dict"),
        (body_of([png(MEDIA[0])], prompts=["a", "b"]), 400, "a prompt for each sample, got 2 and 1"),
        (b'{"prompts": ["a"], "media": "x"}', 400, 'media must be an object {"kind": str, "arrays": dict'),
        (media_of("smell", {}), 400, "no kind of media 'smell'"),
        (media_of("sound", {"rate": 8000}, waves=("float32", [1, 1, 4])), 400, "takes media of the kind 'picture', got"),
        (media_of("sound", {}, waves=("float32", [1, 1, 4])), 400, "the facts ['rate'], got ['waves'] and []"),
        (media_of("sound", {"rate": 0.5}, waves=("float32", [1, 1, 4])), 400, "rate must be a finite int, got 0.5"),
        (media_of("sound", {"rate": "x"}, waves=("float32", [1, 1, 4])), 400, "facts of media must be numbers"),
        (media_of("picture", {}, pixels=("uint8", [1, 2, 2, 4])), 400, "Pictures.pixels is uint8 [N, H, W, 3], got"),
        (media_of("picture", {}, pixels=("uint8", [1, 2, 2, 3], 9)), 400, "takes 12 bytes, got 9"),
        (media_of("picture", {}, pixels=("uint8", [1 << 40])), 400, "1 to 8 sizes above 0"),
        (media_of("picture", {}, pixels=("object", [1])), 400, "a dtype of uint8, float32"),
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
def test_a_malformed_request_is_refused_with_the_reason(body: bytes, status: int, said: str) -> None:
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
        until(lambda: len(server._ends_s) <= 1)  # the connection of the good request, which its caller keeps


def test_so_many_connections_and_no_more(ask) -> None:
    with served(Brightness(), limits=Limits(connections=2)) as server:
        held = [socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(2)]
        time.sleep(0.2)
        # The answer is 503, unless the connection was closed before the caller had sent the whole request.
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
        assert list(ask(server, "https")(["a"], MEDIA[:1]).reasons) == ["http"]  # the caller does not know this CA yet
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca))
        assert list(ask(server, "https")(["a"], MEDIA[:1]).reasons) == [""]
        with socket.create_connection(("127.0.0.1", server.server_port)) as silent:  # never begins its handshake
            silent.settimeout(20.0)
            assert list(ask(server, "https")(["a"], MEDIA[:1]).reasons) == [""]
            assert silent.recv(1) == b""
        assert exchange(server.server_port, b"GET /health HTTP/1.1\r\n\r\n")[:4] != b"HTTP"  # no plain HTTP there


def test_it_does_not_start_without_a_token_or_where_it_cannot_listen() -> None:
    with pytest.raises(ConfigError, match="set DROVER_REWARD_TOKEN"):
        Endpoint(("127.0.0.1", 0), "", lambda request, wait_s: Scores([]), Pictures)
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.77:80"):
        Endpoint(("192.0.2.77", 80), TOKEN, lambda request, wait_s: Scores([]), Pictures)


def test_limits_of_a_head() -> None:
    with served(Brightness()) as server:
        assert answer(server, request(b"", extra=b"X: " + b"y" * module.HEAD_BYTES + b"\r\n"))[0] == 431
        assert answer(server, request(b"", extra=b"Transfer-Encoding: chunked\r\n"))[0] == 411
        assert answer(server, request(b"", extra=b"Content-Length: 0\r\n"))[0] == 411
