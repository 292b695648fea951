"""Answer HTTP requests for one reward, with limits of access, size and time. Knows no reward and reads no media.

Every connection has a thread and a deadline. A request must arrive whole by its deadline, even if it comes slowly;
otherwise the socket is closed, even while its thread waits. Bytes of all open requests are counted, and a request that
would exceed the limit gets 503 before its body is read. The body of a request without the token is not read.
"""

from __future__ import annotations

import hmac
import json
import logging
import math
import socket
import socketserver
import ssl
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import BoundedSemaphore, Lock
from typing import Any, BinaryIO, cast

from drover.common.errors import ConfigError, ScoringFailed
from drover.common.media.media import Media
from drover.common.protocols import Scores
from drover.reward_servers.http.limits import Limits, Refused
from drover.reward_servers.http.wire import Request, parse_request, reply_body

SCORE, HEALTH = "/score", "/health"
HEAD_BYTES = 16 << 10  # limit of a request line and headers
LINGER_S, LINGER_BYTES = 2.0, 1 << 20  # limits of reading on from a refused client, so that the answer reaches it
NOTE_S = 10.0  # between two log lines about requests refused with the same status
NO_TOKEN = "a reward is not served without a token; set DROVER_REWARD_TOKEN or DROVER_REWARD_TOKEN_FILE"
BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
COPIES = 3  # the most copies of a body, and of its media, in memory at one time

Score = Callable[[Request, float], Scores]

log = logging.getLogger(__name__)


class Endpoint(ThreadingHTTPServer):
    """The HTTP server of one reward. It listens once made; `serve_forever` answers. Many threads call ``score`` at once."""

    daemon_threads = True  # an idle connection must not keep the process from ending
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(
        self,
        address: tuple[str, int],
        token: str,
        score: Score,
        takes: type[Media],
        *,
        limits: Limits | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """``address``: port 0 takes a free one. ``takes``: the kind of media that the reward scores.

        Raises `ConfigError` where the address cannot be used, or without a token.
        """
        if not token:
            raise ConfigError(NO_TOKEN)
        self.limits, self.score, self.takes, self._tls = limits or Limits(), score, takes, tls
        self._token = b"Bearer " + token.encode()
        self._slots = BoundedSemaphore(self.limits.connections)
        self._lock = Lock()
        self._ends_s: dict[socket.socket, float] = {}  # connection -> the time at which it is closed
        self._held_bytes = 0
        self._refused: Counter[int] = Counter()  # by status
        self._noted_s: dict[int, float] = {}
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        try:
            super().__init__(address, _Connection)
        except (OSError, OverflowError, UnicodeError) as error:  # the last two: no port, no host name
            where, reason = f"{address[0]}:{address[1]}", getattr(error, "strerror", None) or error
            raise ConfigError(
                f"cannot listen on {where} ({reason}); choose an address of this machine and a free port"
            ) from error

    def knows(self, authorization: list[str]) -> bool:
        """Whether these headers hold the token, compared in constant time."""
        given = authorization[0] if len(authorization) == 1 else ""
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._token)

    def note(self, refusal: Refused) -> None:
        """Log a refusal, but not so often that refused clients can fill the disk."""
        with self._lock:
            self._refused[refusal.status] += 1
            now_s, count = time.monotonic(), self._refused[refusal.status]
            if now_s - self._noted_s.get(refusal.status, -math.inf) < NOTE_S:
                return
            self._noted_s[refusal.status] = now_s
        log.warning("refused %d requests with %d so far; the last: %s", count, refusal.status, refusal.text)

    # ------------------------------------------------------------------------------------- limits

    def cut_after(self, connection: socket.socket, seconds: float) -> None:
        """Set the connection's deadline, in place of the former one."""
        with self._lock:
            self._ends_s[connection] = time.monotonic() + seconds

    def hold(self, nbytes: int) -> bool:
        """Reserve bytes for a request. Returns False where the limit would be exceeded."""
        with self._lock:
            if self._held_bytes + nbytes > self.limits.held_bytes:
                return False
            self._held_bytes += nbytes
            return True

    def let_go(self, nbytes: int) -> None:
        with self._lock:
            self._held_bytes -= nbytes

    def service_actions(self) -> None:
        """Close the connections that are past their deadline. `serve_forever` calls this twice a second."""
        now_s = time.monotonic()
        with (
            self._lock
        ):  # a socket leaves the table before it is closed, so a reused descriptor is never closed by mistake
            for connection in [one for one, end_s in self._ends_s.items() if end_s < now_s]:
                del self._ends_s[connection]
                with suppress(OSError):  # not SSLSocket's own, which would break the thread that is reading
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    # -------------------------------------------------------------------------------- connections

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own asks DNS for a name, which may take minutes
        self.server_name, self.server_port = self.server_address[0], self.server_address[1]  # type: ignore[assignment]

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, peer = super().get_request()
        if self._tls is not None:  # the handshake is made later, in the connection's own thread
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, peer

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            if self._tls is None:
                with suppress(OSError):
                    request.send(BUSY)
            self.shutdown_request(request)
            return
        self.cut_after(request, self.limits.request_s)
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._ends_s.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an unexpected error of a connection's thread in one line, without a traceback that a client could provoke."""
        import sys

        error = sys.exc_info()[1]
        level = logging.DEBUG if isinstance(error, OSError) else logging.WARNING
        log.log(level, "a connection ended with %s", type(error).__name__)


class _Head:
    """Reads the bytes of a connection, with a limit on the length of a request's head."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.left = file, HEAD_BYTES

    def readline(self, limit: int = -1) -> bytes:
        line = self._file.readline(min(limit, self.left + 1) if limit >= 0 else self.left + 1)
        self.left -= len(line)
        if self.left < 0:
            raise Refused(431, f"a request's head may have {HEAD_BYTES} bytes")
        return line

    def read(self, nbytes: int) -> bytes:
        return self._file.read(nbytes)

    def close(self) -> None:
        self._file.close()


class _Connection(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    server: Endpoint
    headers: HTTPMessage
    protocol_version = "HTTP/1.1"
    # One write per answer: otherwise the body waits until the client has acknowledged the head.
    wbufsize, disable_nagle_algorithm = -1, True
    default_request_version = "HTTP/1.1"  # otherwise an unreadable request is answered in HTTP/0.9, without a status

    def setup(self) -> None:
        super().setup()
        self._head = _Head(self.rfile)  # type: ignore[arg-type]
        self.rfile = cast(Any, self._head)

    def handle_one_request(self) -> None:
        """Read and answer one request. An OSError, such as that of a closed connection, ends the thread."""
        self._head.left = HEAD_BYTES
        self.command = self.requestline = ""
        self.request_version = self.default_request_version
        try:
            self.raw_requestline = self._head.readline()
            if not self.raw_requestline.strip(b"\r\n"):
                self.close_connection = True
                return
            self.server.cut_after(self.connection, self.server.limits.request_s)
            if self.parse_request():  # otherwise it has sent the error
                self._answer()
        except Refused as refusal:
            self._refuse(refusal)
        self.server.cut_after(self.connection, self.server.limits.idle_s)

    def _answer(self) -> None:
        if len(self.requestline.split()) != 3:
            raise Refused(400, "this is no HTTP/1.1 request")
        if self.command == "GET" and self.path == HEALTH:
            if self._length(missing=0):
                raise Refused(400, "a body comes with POST alone")
            self._send(200, b'{"status": "ok"}')
        elif self.path != SCORE:
            raise Refused(404, f"there are POST {SCORE} and GET {HEALTH} here")
        elif self.command != "POST":
            raise Refused(405, f"{SCORE} answers POST")
        else:
            self._score()

    def _score(self) -> None:
        limits = self.server.limits
        if not self.server.knows(self.headers.get_all("Authorization", [])):
            raise Refused(401, "wants the header Authorization: Bearer TOKEN")
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, "wants Content-Type: application/json")
        length = self._length()
        if length > limits.body_bytes:
            raise Refused(413, f"a body may have {limits.body_bytes} bytes")
        held: list[int] = []

        def hold(nbytes: int) -> None:
            if not self.server.hold(COPIES * nbytes):
                raise Refused(503, "busy; ask again")
            held.append(COPIES * nbytes)

        try:
            hold(length)
            if "100-continue" in self.headers.get("Expect", "").lower():
                self.send_response_only(100)
                self.end_headers()
                self.wfile.flush()
            body = self._head.read(length)
            if len(body) < length:
                self.close_connection = True  # the connection was closed, by this server or by the client
                return
            request = parse_request(body, self.server.takes, limits, hold)
            del body
            self.server.cut_after(self.connection, limits.answer_s + limits.request_s)
            try:
                scores = self.server.score(request, limits.answer_s)
            except ScoringFailed as error:
                log.warning("a request got no scores: %s", error)
                raise Refused(503, "no scores in time; ask again") from error
        finally:
            self.server.let_go(sum(held))
        self._send(200, reply_body(scores))

    def _length(self, missing: int | None = None) -> int:
        """The body's length. Only a single plain Content-Length is accepted, so that the end of a request is unambiguous."""
        lengths = self.headers.get_all("Content-Length", [])
        if self.headers.get_all("Transfer-Encoding") or len(lengths) > 1 or (not lengths and missing is None):
            raise Refused(411, "wants one Content-Length, and no Transfer-Encoding")
        if not lengths:
            return missing or 0
        if not (lengths[0].isascii() and lengths[0].isdigit() and len(lengths[0]) <= 12):
            raise Refused(400, "Content-Length is no number")
        return int(lengths[0])

    # ------------------------------------------------------------------------------------ answering

    def _send(self, status: int, body: bytes) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        if status == 503:
            self.send_header("Retry-After", "1")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def _refuse(self, refusal: Refused) -> None:
        """Send the reason and close the connection, because the start of the next request is unknown."""
        self.close_connection = True
        self.server.note(refusal)
        self.server.cut_after(self.connection, LINGER_S)
        self._send(refusal.status, json.dumps({"error": refusal.text}).encode())
        with suppress(OSError):
            # Closing with unread bytes would reset the connection, and the client might lose the answer.
            if not isinstance(self.connection, ssl.SSLSocket):
                self.connection.shutdown(socket.SHUT_WR)
            left = LINGER_BYTES
            while left > 0 and (chunk := self.connection.recv(min(left, 1 << 16))):
                left -= len(chunk)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse a request that the base class cannot read; every such fault is the client's."""
        raise Refused(code if 400 <= code < 500 else 400, "this is no HTTP/1.1 request")

    def handle_expect_100(self) -> bool:
        return True  # "100 Continue" is sent later, after the check of the token and the length

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the base class would print texts that clients send."""
