"""POST requests with hard limits of time and size, which also hold for an endpoint that sends slowly, endlessly or nothing.

Knows no form of a body. Redirects are not followed, and proxies are not used.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from threading import Event, Timer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

RETRIED = frozenset({408, 429, 500, 502, 503, 504})  # status codes after which another try may succeed


class Failed(Exception):
    """One try got no usable reply. ``word`` is the mask's reason; ``passing`` means that another try may succeed."""

    def __init__(self, word: str, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.word, self.passing = word, passing


class Client:
    """Sends requests over one connection to one endpoint. A try ends after ``timeout_s``, or twice that for a slow reply."""

    def __init__(self, url: str, headers: Mapping[str, str], timeout_s: float) -> None:
        import urllib3

        own = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "drover"}
        self._url, self._timeout_s = url, timeout_s
        self._pool = urllib3.PoolManager(
            num_pools=1, headers=own | dict(headers), retries=False, timeout=urllib3.Timeout(total=timeout_s)
        )
        self._pool.pool_classes_by_scheme = _pools(self._opened)
        self._socket: socket.socket | None = None  # the newest connection's

    def post(self, body: bytes, reply_bytes: int) -> bytes:
        """Post ``body`` and return the endpoint's JSON reply, at most ``reply_bytes`` long. Raises `Failed`."""
        import urllib3

        deadline = time.monotonic() + self._timeout_s
        late = Event()
        # The library limits the time of each single read, so a head that comes slowly or never ends passes its limits.
        timer = Timer(2 * self._timeout_s, self._cut, [late])
        timer.daemon = True
        timer.start()
        try:
            response = self._pool.request(
                "POST", self._url, body=body, redirect=False, preload_content=False, decode_content=False
            )
            try:
                reply = _read(response, reply_bytes, deadline)
            except BaseException:
                response.close()  # the next reply must not begin with the rest of this one
                raise
        except urllib3.exceptions.NewConnectionError as error:  # a TimeoutError by inheritance only
            raise Failed("http", "cannot be reached", passing=True) from error
        except urllib3.exceptions.TimeoutError as error:
            raise Failed("timeout", f"no reply within {self._timeout_s:g} s", passing=True) from error
        except urllib3.exceptions.HTTPError as error:
            if late.is_set():
                raise Failed("timeout", "the reply came too slowly", passing=True) from error
            raise Failed("http", type(error).__name__, passing=True) from error
        finally:
            timer.cancel()
        response.release_conn()
        return reply

    def _opened(self, connection: socket.socket) -> None:
        self._socket = connection

    def _cut(self, late: Event) -> None:
        """End the present try by closing its connection."""
        late.set()
        if self._socket is not None:
            with suppress(OSError):  # the connection may be closed already
                self._socket.shutdown(socket.SHUT_RDWR)


def _pools(opened: Callable[[socket.socket], None]) -> dict[str, Any]:
    """urllib3's connection pools by scheme, which pass the socket of every connection to ``opened``."""
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


def _read(response: BaseHTTPResponse, limit: int, deadline: float) -> bytes:
    """The body of a reply of an acceptable form, at most ``limit`` bytes long. Raises `Failed` otherwise."""
    if response.status != 200:
        raise Failed("http", f"answered {response.status}", passing=response.status in RETRIED)
    if response.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
        raise Failed("reply", "the reply's Content-Type is not application/json")
    body = bytearray()
    while chunk := response.read1(limit + 1 - len(body)):
        body += chunk
        if len(body) > limit:
            raise Failed("reply", f"the reply is larger than {limit} bytes")
        if time.monotonic() > deadline:
            raise Failed("timeout", "the reply came too slowly", passing=True)
    return bytes(body)
