"""A reward behind HTTP: an endpoint that somebody runs scores the pictures. Trusts nothing that it answers.

The wire, one request for at most ``batch_size`` samples::

    POST <url>   Content-Type: application/json   [Authorization: Bearer <token>]
    {"prompts": ["a red circle", ...], "images": ["<base64 of an RGB PNG file>", ...]}

    200          Content-Type: application/json
    {"values": [0.25, null, ...], "reasons": ["", "blurred", ...]}

``values`` has one number per sample, in order, in the reward's own unit. ``reasons``, which may be left out, has "" where
a value counts, else the word for why it does not: at most 32 of a-z, 0-9 and "_", from a letter. Other keys are ignored.
`drover serve` answers such requests with any reward of drover's.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import math
import re
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Event, Timer
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

import numpy as np

from drover.common import secrets
from drover.common.errors import ConfigError
from drover.common.protocols import Scores

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

RETRIED = frozenset({408, 429, 500, 502, 503, 504})  # status codes that may pass
REPLY_BYTES, REPLY_BYTES_PER_SAMPLE = 4096, 256  # more is refused unread
MAX_PAUSE_S = 30.0  # between two tries
MAX_WORDS = 16  # of the endpoint's own, that one server passes on; they become labels of a metric
_WORD = re.compile(r"[a-z][a-z0-9_]{0,31}")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HttpReward:
    """Unit and range are the endpoint's. The module's docstring has the wire format.

    A sample that gets no value is masked: ``http`` the endpoint cannot be reached or does not answer 200 (redirects are
    not followed), ``timeout``, ``reply`` its answer is not of the form wanted, or too large, ``breaker`` it was not asked,
    ``nan`` its value is null or not finite, else the endpoint's own word, ``remote`` for one that is not well-formed.

    A try that times out, finds nobody or meets a status of 408, 429, 500, 502, 503 or 504 is repeated up to ``retries``
    times, after ``backoff_s``, then twice that, and so on. After ``breaker_failures`` failed tries in a row nothing is
    asked for ``breaker_s``; then one try decides whether the endpoint is asked again.

    The bearer token is what the environment variable ``token_variable`` of the reward's process holds (or the file that the
    variable with _FILE at its end names), or what is in ``token_file`` on its node; the token is in no option, log or
    message. Secrets do not belong into the URL, which is in all of them. Proxies are not used.
    """

    packages: ClassVar[tuple[str, ...]] = ()

    name: str
    url: str
    token_variable: str = ""
    token_file: str = ""  # neither: no Authorization header
    timeout_s: float = 60.0  # of one try; a reply that drips in is given up after at most twice that
    retries: int = 3
    backoff_s: float = 0.5
    batch_size: int = 32
    breaker_failures: int = 5
    breaker_s: float = 30.0

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ConfigError(f"HttpReward {self.name!r} wants a url like https://host/score; this is none")
        if parts.username is not None or parts.password is not None:
            raise ConfigError(f"the url of HttpReward {self.name!r} holds a user or password; use token_variable")
        if self.token_variable and self.token_file:
            raise ConfigError(f"HttpReward {self.name!r} has token_variable and token_file; give one of them")
        if not 0 <= self.retries <= 10:
            raise ConfigError(f"retries must be 0 to 10, got {self.retries}")
        for option in ("batch_size", "breaker_failures"):
            if getattr(self, option) < 1:
                raise ConfigError(f"{option} must be at least 1, got {getattr(self, option)}")
        for option in ("timeout_s", "backoff_s", "breaker_s"):
            if not 0 < getattr(self, option) < math.inf:
                raise ConfigError(f"{option} must be above 0 seconds, got {getattr(self, option)}")

    def load(self, device: str) -> HttpScorer:
        if self.token_file:
            token = secrets.from_file(self.token_file, f"token_file of HttpReward {self.name!r}")
        elif self.token_variable:
            token = secrets.from_environment(self.token_variable)
        else:
            return HttpScorer(self, {})
        if not token:
            raise ConfigError(
                f"HttpReward {self.name!r} takes its token from {self.token_variable}, which is not set; "
                "set it in the environment of the reward's node"
            )
        return HttpScorer(self, {"Authorization": f"Bearer {token}"})


class HttpScorer:
    """One connection to the endpoint. ``requests`` and ``retried`` count its tries, and those that were not the first."""

    def __init__(self, reward: HttpReward, authorization: dict[str, str]) -> None:
        import urllib3

        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "drover"}
        self.reward = reward
        self.breaker = Breaker(reward.breaker_failures, reward.breaker_s)
        self.requests = self.retried = 0
        self._words: set[str] = set()
        self._pool = urllib3.PoolManager(
            num_pools=1, headers=headers | authorization, retries=False, timeout=urllib3.Timeout(total=reward.timeout_s)
        )
        self._pool.pool_classes_by_scheme = _pools(self._opened)
        self._socket: socket.socket | None = None  # of the newest connection

    def __call__(self, prompts: Sequence[str], media: np.ndarray) -> Scores:
        values: list[float] = []
        reasons: list[str] = []
        for first in range(0, len(media), self.reward.batch_size):
            rows = slice(first, first + self.reward.batch_size)
            scores = self._ask(prompts[rows], media[rows])
            values += scores[0]
            reasons += scores[1]
        return Scores(values, reasons)

    def _ask(self, prompts: Sequence[str], media: np.ndarray) -> tuple[list[float], list[str]]:
        """Values and reasons of one request, tried again where that may help."""
        word, body = "breaker", b""
        for attempt in range(1 + self.reward.retries):
            if not self.breaker.lets_through(time.monotonic()):
                break
            if attempt:
                self.retried += 1
                time.sleep(min(self.reward.backoff_s * 2 ** (attempt - 1), MAX_PAUSE_S))
            body = body or request_body(prompts, media)
            try:
                values, reasons = parse_reply(self._post(body, len(prompts)), len(prompts))
            except _Failed as failure:
                word = failure.word
                self._note(failure)
                if not failure.passing:
                    break
            else:
                self.breaker.succeeded()
                return values, [self._bounded(reason) for reason in reasons]
        return [math.nan] * len(prompts), [word] * len(prompts)

    def _post(self, body: bytes, samples: int) -> bytes:
        """The reply to one try."""
        import urllib3

        self.requests += 1
        deadline = time.monotonic() + self.reward.timeout_s
        late = Event()
        # The library's limits are of each part that it reads; heads that drip in, or never end, pass all of them.
        timer = Timer(2 * self.reward.timeout_s, self._cut, [late])
        timer.daemon = True
        timer.start()
        try:
            response = self._pool.request(
                "POST", self.reward.url, body=body, redirect=False, preload_content=False, decode_content=False
            )
            try:
                reply = _read(response, REPLY_BYTES + REPLY_BYTES_PER_SAMPLE * samples, deadline)
            except BaseException:
                response.close()  # what is still under way must not be taken for the next reply
                raise
        except urllib3.exceptions.NewConnectionError as error:  # a TimeoutError by inheritance only
            raise _Failed("http", "cannot be reached", passing=True) from error
        except urllib3.exceptions.TimeoutError as error:
            raise _Failed("timeout", f"no reply within {self.reward.timeout_s:g} s", passing=True) from error
        except urllib3.exceptions.HTTPError as error:
            if late.is_set():
                raise _Failed("timeout", "the reply came too slowly", passing=True) from error
            raise _Failed("http", type(error).__name__, passing=True) from error
        finally:
            timer.cancel()
        response.release_conn()
        return reply

    def _opened(self, connection: socket.socket) -> None:
        self._socket = connection

    def _cut(self, late: Event) -> None:
        """End the try under way: whatever it waits for, it now gets the end of the connection."""
        late.set()
        if self._socket is not None:
            with suppress(OSError):  # it may be closed by now
                self._socket.shutdown(socket.SHUT_RDWR)

    def _note(self, failure: _Failed) -> None:
        self.breaker.failed(time.monotonic())
        pause = "" if self.breaker.opened is None else f"; not asked again for {self.reward.breaker_s:g} s"
        log.warning("reward %s: %s%s", self.reward.name, failure, pause)

    def _bounded(self, reason: str) -> str:
        """The endpoint's word, as long as it is one and they stay few."""
        if not reason:
            return ""
        if _WORD.fullmatch(reason) and (reason in self._words or len(self._words) < MAX_WORDS):
            self._words.add(reason)
            return reason
        return "remote"


def _pools(opened: Callable[[socket.socket], None]) -> dict[str, Any]:
    """urllib3's own, by scheme; ``opened`` is given the socket of every connection."""
    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
    from urllib3.connection import HTTPConnection, HTTPSConnection

    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            opened(self.sock)

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            opened(self.sock)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}


class Breaker:
    """Whether to ask at all: after ``failures`` in a row not for ``pause_s``, then with each failure not again for it."""

    def __init__(self, failures: int, pause_s: float) -> None:
        self.failures, self.pause_s = failures, pause_s
        self.opened: float | None = None  # monotonic seconds; None while it is closed
        self._in_a_row = 0

    def lets_through(self, now: float) -> bool:
        return self.opened is None or now - self.opened >= self.pause_s

    def succeeded(self) -> None:
        self.opened, self._in_a_row = None, 0

    def failed(self, now: float) -> None:
        self._in_a_row += 1
        if self._in_a_row >= self.failures:
            self.opened = now


class _Failed(Exception):
    """One try brought no values. ``passing``: another may."""

    def __init__(self, word: str, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.word, self.passing = word, passing


def request_body(prompts: Sequence[str], media: np.ndarray) -> bytes:
    """JSON of N prompts and media [N, H, W, 3] uint8."""
    return json.dumps({"prompts": list(prompts), "images": [_png(image) for image in media]}).encode()


def _png(image: np.ndarray) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


def _read(response: BaseHTTPResponse, limit: int, deadline: float) -> bytes:
    """The body of a reply that may be read at all, at most ``limit`` bytes of it."""
    if response.status != 200:
        raise _Failed("http", f"answered {response.status}", passing=response.status in RETRIED)
    if response.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
        raise _Failed("reply", "the reply's Content-Type is not application/json")
    body = bytearray()
    while chunk := response.read1(limit + 1 - len(body)):
        body += chunk
        if len(body) > limit:
            raise _Failed("reply", f"the reply is larger than {limit} bytes")
        if time.monotonic() > deadline:
            raise _Failed("timeout", "the reply came too slowly", passing=True)
    return bytes(body)


def parse_reply(reply: bytes, samples: int) -> tuple[list[float], list[str]]:
    """N values, NaN where one does not count, and N reasons."""
    try:
        answer = json.loads(reply.decode())
    except (ValueError, RecursionError) as error:
        raise _Failed("reply", "the reply is not JSON") from error
    if not isinstance(answer, dict):
        raise _Failed("reply", "the reply is not a JSON object")
    values, reasons = answer.get("values"), answer.get("reasons", [""] * samples)
    if not isinstance(values, list) or len(values) != samples:
        raise _Failed("reply", f"the reply's values are not a list of {samples}")
    if not isinstance(reasons, list) or len(reasons) != samples or not all(isinstance(word, str) for word in reasons):
        raise _Failed("reply", f"the reply's reasons are not a list of {samples} words")
    numbers = [_number(value) for value in values]
    reasons = [reason or ("" if math.isfinite(x) else "nan") for x, reason in zip(numbers, reasons, strict=True)]
    return [math.nan if reason else x for x, reason in zip(numbers, reasons, strict=True)], reasons


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Failed("reply", "the reply's values are not all numbers")
    try:
        return float(value)
    except OverflowError:
        return math.inf
