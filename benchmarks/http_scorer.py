"""An HTTP server that scores one picture per request, as scripts share a reward model, and its client.

Pictures travel as base64 of raw pixels, which costs both ends less than the PNG or JPEG that scripts send.
"""

from __future__ import annotations

import base64
import http.client
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

import numpy as np
import torch

from drover.common.media.pictures import Pictures
from drover.common.prompts import Prompt
from drover.common.protocols import Scorer

SPAWN = multiprocessing.get_context("spawn")


@contextmanager
def serving(build: Callable[[], Scorer]) -> Iterator[int]:
    """Run the server in a process of its own during the block; gives its port."""
    port = SPAWN.Value("i", 0)
    process = SPAWN.Process(target=_serve, args=(build, port), daemon=True)
    process.start()
    while not port.value:
        assert process.is_alive(), "the HTTP server did not start"
        time.sleep(0.05)
    try:
        yield port.value
    finally:
        process.terminate()
        process.join()


def rate(port: int, prompt: str, pictures: np.ndarray, in_flight: int) -> float:
    """Return samples/s for pictures [N, H, W, 3], with ``in_flight`` requests at a time."""

    def ask(rows: range) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for row in rows:
            picture = base64.b64encode(pictures[row].tobytes()).decode()
            body = json.dumps({"prompt": prompt, "shape": pictures[row].shape, "image": picture})
            connection.request("POST", "/", body)
            float(json.loads(connection.getresponse().read())["score"])
        connection.close()

    started_s = time.perf_counter()
    with ThreadPoolExecutor(in_flight) as threads:
        list(threads.map(ask, [range(first, len(pictures), in_flight) for first in range(in_flight)]))
    return len(pictures) / (time.perf_counter() - started_s)


def _serve(build: Callable[[], Scorer], port: Any) -> None:
    torch.set_num_threads(1)
    scorer, alone = build(), Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # otherwise each answer waits 40 ms for an acknowledgement

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            pixels = bytearray(base64.b64decode(asked["image"]))
            picture = np.frombuffer(pixels, np.uint8).reshape(1, *asked["shape"])
            with alone:
                scores = scorer([Prompt(asked["prompt"])], Pictures(picture))
            answer = json.dumps({"score": scores.values[0]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.value = server.server_port
    server.serve_forever()
