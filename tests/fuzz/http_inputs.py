"""The reward endpoint on a real socket: requests whose head, JSON or pictures are damaged. Only 200 and 4xx may come back."""

from __future__ import annotations

import base64
import io
import json
import random
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from drover.common.metrics import NullMeter
from drover.reward_servers.http.endpoint import Endpoint
from drover.reward_servers.http.limits import Limits
from drover.reward_servers.http.png import FIRST_BYTES
from drover.reward_servers.http.window import Window
from drover.reward_servers.rewards.jpeg_size import JpegSize, kilobytes
from tests.fuzz.harness import damaged, disfigured

TOKEN = "fuzz-token"
LIMITS = Limits(body_bytes=4 << 20, pixels=1 << 20, request_s=30.0, idle_s=30.0, answer_s=50.0)
PICTURE = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
CHECK_EVERY = 500  # inputs, after which a good request must still be answered rightly


class Watched(Endpoint):
    """An endpoint that remembers the unexpected errors in the threads of its connections."""

    surprises: list[BaseException]

    def handle_error(self, request: object, client_address: object) -> None:
        import sys

        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, OSError):
            self.surprises.append(error)


@contextmanager
def judge() -> Iterator[Callable[[random.Random], str]]:
    """Gives the function that `drive` calls with each generator, while the endpoint runs: it sends one request."""
    reward = JpegSize()
    window = Window(reward.name, reward.load("cpu"), NullMeter(), max_batch=64, deadline_s=50.0)
    with window, Watched(("127.0.0.1", 0), TOKEN, window.score, reward.takes, limits=LIMITS) as server:
        server.surprises = []
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        done = 0

        def one(draw: random.Random) -> str:
            nonlocal done
            done += 1
            status = ask(server.server_port, hostile_request(draw))
            if server.surprises:
                raise server.surprises[0]
            assert status in ("closed", "200") or status[0] == "4", f"answered {status}"
            if done % CHECK_EVERY == 0:
                answer = exchange(server.server_port, request(body_of([png(PICTURE)])))
                values = json.loads(answer.partition(b"\r\n\r\n")[2])["values"]
                assert values == [-kilobytes(PICTURE)], answer[:300]
            return status

        try:
            yield one
        finally:
            server.shutdown()
            thread.join()


def ask(port: int, data: bytes) -> str:
    """The status of the answer, or "closed" where none came."""
    answer = exchange(port, data)
    answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    head = answer.split(b" ", 2)
    return head[1].decode("latin-1") if answer.startswith(b"HTTP/1.1 ") and len(head) > 1 else "closed"


def exchange(port: int, data: bytes) -> bytes:
    """The whole answer to ``data``, up to the end of the connection; the server is told that no more data follow."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=55.0) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused before all of it was sent
        try:
            while chunk := connection.recv(1 << 16):
                answer += chunk
        except ConnectionResetError:
            pass
    return answer


def request(body: bytes, *, length: object = None, extra: bytes = b"", token: str = TOKEN) -> bytes:
    lines = [
        b"POST /score HTTP/1.1",
        b"Host: h",
        b"Content-Type: application/json",
        b"Authorization: Bearer " + token.encode(),
        b"Content-Length: " + str(len(body) if length is None else length).encode(),
    ]
    return b"\r\n".join(lines) + b"\r\n" + extra + b"\r\n" + body


def body_of(files: list[bytes], **others: object) -> bytes:
    images = [base64.b64encode(file).decode() for file in files]
    return json.dumps({"prompts": ["a"] * len(files), "images": images, **others}).encode()


def png(picture: np.ndarray, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(file, format="PNG")
    return file.getvalue()


def hostile_request(draw: random.Random) -> bytes:
    match draw.randrange(10):
        case 0:
            return hostile_head(draw)
        case 1:
            return damaged(draw, request(body_of([png(PICTURE)])))
        case 2:
            return request(damaged(draw, body_of([png(PICTURE)] * 2)))
        case 3 | 4 | 5:
            return request(hostile_json(draw))
        case 6:
            return request(body_of([damaged(draw, png(PICTURE)) for _ in range(draw.randint(1, 3))]))
        case 7 | 8:
            return request(body_of([hostile_picture(draw)]))
    return draw.randbytes(draw.choice((1, 20, 500, 40_000)))


def hostile_head(draw: random.Random) -> bytes:
    body = body_of([png(PICTURE)])
    lengths = [-1, 0, 1, len(body) + 1, 10**9, 10**30, "0x10", "1_0", "+5", " ", "5, 5", "\u0665", "", "9" * 5000]
    extras = [
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 3\r\n",
        b"Authorization: Bearer other\r\n",
        b"Expect: 100-continue\r\n",
        b"X: " + b"y" * draw.choice((10, 20_000, 200_000)) + b"\r\n",
        b"X: y\r\n" * draw.choice((5, 150, 3000)),
        b" folded\r\n",
        b"no colon\r\n",
        b": empty\r\n",
        b"X:\x00\xff\r\n",
        b"Connection: keep-alive\r\nConnection: close\r\n",
    ]
    lines = [
        b"GET / HTTP/1.1",
        b"GET /",
        b"GET",
        b"POST /score HTTP/9.9",
        b"POST /score HTTP/1.1 x",
        b"TRACE /score HTTP/1.1",
        b"POST /score HTTP/1.\xb2",
        b"POST /../score HTTP/1.1",
        b"POST //score HTTP/1.1",
        b"GET /health HTTP/1.0",
        b"HEAD /score HTTP/1.1",
        b"PRI * HTTP/2.0",
        b"POST /score?" + b"q" * 70_000 + b" HTTP/1.1",
        b"\x16\x03\x01\x02\x00\x01",
        b"CONNECT h:1 HTTP/1.1",
    ]
    match draw.randrange(5):
        case 0:
            return request(body, length=draw.choice(lengths))
        case 1:
            return request(body, extra=draw.choice(extras))
        case 2:
            return request(body, token=draw.choice(["", "x", TOKEN + "x", TOKEN[:-1], "\u00e9" * 9, "x" * 5000]))
        case 3:
            good = request(body)
            return draw.choice(lines) + good[good.index(b"\r\n") :]
    return request(body) + request(body, extra=draw.choice(extras))  # two on one connection


def hostile_json(draw: random.Random) -> bytes:
    image = base64.b64encode(png(PICTURE)).decode()
    tree: object = {"prompts": ["a", "a"], "images": [image, image], "sets": [2], "fields": [{"count": 2}] * 2}
    if draw.randrange(2):
        tree = {"prompts": ["a", "b"], "media": {"kind": "picture", "facts": {}, "arrays": {"pixels": plain_picture()}}}
    match draw.randrange(8):
        case 0:
            return draw.choice((b"[", b'{"a":', b'{"prompts":[')) * draw.choice((10, 2000, 150_000))
        case 1:
            return b'{"prompts":[' + b",".join([b'""'] * draw.choice((300, 50_000, 250_000))) + b'],"images":[]}'
        case 2:
            return (
                b'{"prompts":['
                + draw.choice((b"NaN", b"1e999", b"-" + b"9" * 4000, b'"\\ud800"'))
                + b'],"images":["'
                + image.encode()
                + b'"]}'
            )
        case 3:
            return json.dumps({"prompts": ["p" * draw.choice((4000, 4001, 1 << 20))], "images": [image]}).encode()
        case 4:
            return json.dumps({"prompts": ["a"] * 1025, "images": [""] * 1025}).encode()
    for _ in range(draw.choice((1, 1, 2, 4))):
        tree = disfigured(draw, tree)
    return json.dumps(tree).encode()


def plain_picture() -> dict[str, object]:
    data = base64.b64encode(PICTURE.tobytes() * 2).decode()
    return {"dtype": "uint8", "shape": [2, *PICTURE.shape], "data": data}


def hostile_picture(draw: random.Random) -> bytes:
    good = png(PICTURE)
    match draw.randrange(6):
        case 0:
            return png(PICTURE, draw.choice(("L", "P", "RGBA", "1", "LA")))
        case 1:
            sizes = [0, 1, 6, 7, 2**15, 2**16, 2**31 - 1, 2**32 - 1]
            depth = (draw.choice((1, 8, 8, 16, 3)), draw.choice((2, 2, 0, 3, 6, 7)), 0, 0, draw.choice((0, 1)))
            header = chunk(b"IHDR", struct.pack(">IIBBBBB", draw.choice(sizes), draw.choice(sizes), *depth))
            return FIRST_BYTES + header + good[33:]
        case 2:  # a text that unpacks to far more than it takes
            bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(draw.choice((1 << 10, 8 << 20)))))
            return good[:33] + bomb * draw.choice((1, 3)) + good[33:]
        case 3:  # pixels that unpack to far more than the size says
            return good[:33] + chunk(b"IDAT", zlib.compress(bytes(4 << 20))) + chunk(b"IEND", b"")
        case 4:
            kind = draw.choice(
                (b"iCCP", b"tRNS", b"PLTE", b"eXIf", b"acTL", b"fcTL", b"pHYs", b"iTXt", b"gAMA", b"IEND", b"fdAT")
            )
            return good[:33] + chunk(kind, draw.randbytes(draw.choice((0, 1, 12, 300)))) + good[33:]
    others = io.BytesIO()
    Image.fromarray(PICTURE).save(others, format=draw.choice(("GIF", "BMP", "JPEG", "TIFF")))
    return draw.choice((b"", FIRST_BYTES)) + others.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """Of a PNG file, its checksum right."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
