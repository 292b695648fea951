"""A Redis with an append-only file, apart from the runs that use it, which can be killed and started again."""

from __future__ import annotations

import secrets
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

from drover.common.transport.embedded import find_server

START_S = 60.0


class OwnRedis:
    """A Redis server with its append-only file in ``folder``. `kill` and `start` may be called any number of times."""

    def __init__(self, folder: Path, *, host: str = "127.0.0.1", prefix: tuple[str, ...] = ()) -> None:
        """``prefix``: words before the command, such as ``("ip", "netns", "exec", "blue")``."""
        self._folder, self._host, self._prefix, self._password = folder, host, prefix, secrets.token_hex(16)
        self._port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@{self._host}:{self._port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start the server; returns when it has read its file and answers."""
        path = self._folder / "redis.log"
        before = path.stat().st_size if path.exists() else 0
        with path.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._prefix, find_server(), "-"], stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=self._folder
            )
        assert self._process.stdin is not None
        with self._process.stdin as stdin:
            stdin.write(self._config().encode())
        gives_up_s = time.monotonic() + START_S
        while b"Ready to accept connections" not in path.read_bytes()[before:]:
            if self._process.poll() is not None or time.monotonic() > gives_up_s:
                raise RuntimeError(f"redis-server did not start: {path.read_text()[-2000:]}")
            time.sleep(0.01)

    def kill(self) -> None:
        """Kill the server with SIGKILL, like a crash."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _config(self) -> str:
        lines = (f"bind {self._host}", f"port {self._port}", f"requirepass {self._password}", 'save ""')
        return "\n".join((*lines, "appendonly yes", "appendfsync everysec", "daemonize no", ""))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
