"""A Ray cluster as an operator starts it: `ray start`, a head and marked nodes, tokens checked, a dashboard for jobs."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.end_to_end.service import PATIENCE_S, clean_environment

RAY = str(Path(sys.executable).with_name("ray"))
HOST = "127.0.0.1"
STARTS = 5  # attempts to start a node, as a container runtime restarts its container


@dataclass(frozen=True)
class Nodes:
    """A running cluster: the addresses of its dashboard and head, its token, and the environment for commands that use it."""

    dashboard: str
    address: str
    token: str = field(repr=False)
    env: Mapping[str, str] = field(repr=False)

    def job(self, *arguments: str) -> str:
        """Run ``ray job ARGUMENTS`` and return its output. Raises when it fails."""
        command = [RAY, "job", arguments[0], "--address", self.dashboard, *arguments[1:]]
        said = subprocess.run(command, capture_output=True, text=True, env={**self.env}, timeout=PATIENCE_S)
        assert said.returncode == 0, said.stdout + said.stderr
        return said.stdout + said.stderr

    def state(self, job: str) -> str:
        """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
        return str(json.loads(self.ask(f"/api/jobs/{job}", self.token)[1])["status"])

    def ask(self, path: str, token: str) -> tuple[int, bytes]:
        """HTTP status and body of the dashboard's answer."""
        asked = urllib.request.Request(f"{self.dashboard}{path}", headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(asked, timeout=PATIENCE_S) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:  # the dashboard does not listen yet
            return 0, b""

    def marks(self) -> set[str]:
        """Every resource that a living node offers."""
        status, body = self.ask("/api/v0/nodes", self.token)
        if status != 200:
            return set()
        found = json.loads(body)["data"]["result"]["result"]
        return {name for node in found if node["state"] == "ALIVE" for name in node["resources_total"]}


@contextmanager
def ray_nodes(folder: Path, marks: Mapping[str, int], *, cpus: int, head_env: Mapping[str, str]) -> Iterator[Nodes]:
    """A head without CPUs, and a node for each of ``marks`` that offers that much of the custom resource of its name."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**clean_environment(), "PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    port, dashboard = free_port(), free_port()
    head = (
        *("--head", "--port", str(port), "--temp-dir", str(folder / "ray"), "--num-cpus", "0"),
        *("--include-dashboard", "true", "--dashboard-host", HOST, "--dashboard-port", str(dashboard)),
        *("--ray-client-server-port", str(free_port())),
    )
    started: list[subprocess.Popen[bytes]] = []
    try:
        known = {"RAY_ADDRESS": f"{HOST}:{port}"}  # KubeRay sets it, too
        started.append(_start("head", folder, head, {**env, **head_env, **known}))
        assert _await(lambda: _answers(port), "head", folder, started[-1]), _logs(folder)
        nodes = Nodes(f"http://{HOST}:{dashboard}", f"{HOST}:{port}", token.read_text(), env)
        for name, count in marks.items():
            node = ("--address", f"{HOST}:{port}", "--num-cpus", str(cpus), "--resources", json.dumps({name: count}))
            for _ in range(STARTS):
                started.append(_start(name, folder, node, env))
                if _await(lambda name=name: name in nodes.marks(), name, folder, started[-1]):
                    break
        assert set(marks) <= nodes.marks(), _logs(folder)
        yield nodes
    finally:
        _end(started)


def _start(name: str, folder: Path, arguments: tuple[str, ...], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    command = [RAY, "start", "--block", "--disable-usage-stats", "--node-ip-address", HOST, "--num-gpus", "0"]
    command += ["--min-worker-port", "0", "--max-worker-port", "0"]  # any free ones: other Rays may run beside it
    command += ["--object-store-memory", str(128 << 20), "--dashboard-agent-listen-port", str(free_port())]
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen([*command, *arguments], stdout=log, stderr=log, env={**env}, start_new_session=True)


def _end(started: list[subprocess.Popen[bytes]]) -> None:
    family = [child for process in started for child in _children(process)]
    for process in started:
        process.kill()  # an orderly end takes long and saves nothing that a test needs
        process.wait()
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _await(reached: Callable[[], bool], what: str, folder: Path, starting: subprocess.Popen[bytes]) -> bool:
    """Whether ``reached`` holds before ``starting`` ends: on a busy machine Ray gives a node up after 30 s."""
    gives_up_s = time.monotonic() + PATIENCE_S
    while not reached():
        if starting.poll() is not None:
            return False
        assert time.monotonic() < gives_up_s, f"no {what} after {PATIENCE_S:.0f} s: {_logs(folder)}"
        time.sleep(0.5)
    return True


def _logs(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.glob("*.log"))


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
