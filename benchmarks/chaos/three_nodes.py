"""Runs a Ray cluster of three nodes on this host, each in a network namespace of its own, which can be killed or cut off.

Needs root and ``ip``. Names of namespaces have this process's id, addresses exist only inside them, and no packet leaves
this host.

| node      | address   | has                                      | Ray resource |
|-----------|-----------|------------------------------------------|--------------|
| `head`    | 10.77.0.1 | the driver, the learner, the head, Redis | `learner`    |
| `rollout` | 10.77.0.2 | the actors                               | `rollout`    |
| `reward`  | 10.77.0.3 | the reward servers                       | `reward`     |
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from benchmarks.chaos.own_redis import OwnRedis

RAY = str(Path(sys.executable).with_name("ray"))
MINE = os.getpid()
BRIDGE, NETWORK = f"drover{MINE}", "10.77.0"  # names of interfaces have at most 15 letters
HEAD, ROLLOUT, REWARD = "head", "rollout", "reward"
RESOURCES = {HEAD: "learner", ROLLOUT: "rollout", REWARD: "reward"}
GCS_PORT, CPUS = 6379, 4
STORE_BYTES = 128 << 20
JOIN_S = 240.0


def possible() -> bool:
    """Return whether this process may make namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    tried = f"drover-{MINE}-try"
    made = subprocess.run(["ip", "netns", "add", tried], capture_output=True, check=False).returncode == 0
    if made:
        _ip("netns", "del", tried)
    return made


class Node:
    """One namespace, and the ``ray start`` process in it."""

    def __init__(self, name: str, number: int, folder: Path) -> None:
        self.name, self.address = name, f"{NETWORK}.{number}"
        self.namespace, self.interface = f"drover-{MINE}-{name}", f"drover{MINE}v{number}"
        self._log = folder / f"{name}.log"
        self._ray: subprocess.Popen[bytes] | None = None

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.namespace)

    def make(self) -> None:
        """Make the namespace and its link to the bridge."""
        _ip("netns", "add", self.namespace)
        _ip("link", "add", self.interface, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        _ip("link", "set", self.interface, "master", BRIDGE, "up")
        _ip("-n", self.namespace, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", self.namespace, "link", "set", device, "up")

    def remove(self) -> None:
        with suppress(subprocess.CalledProcessError):
            self.kill()
        for command in (("netns", "del", self.namespace), ("link", "del", self.interface)):
            with suppress(subprocess.CalledProcessError):
                _ip(*command)

    def start(self, env: dict[str, str]) -> None:
        head = ("--head", "--port", str(GCS_PORT), "--include-dashboard", "false")
        where = head if self.name == HEAD else ("--address", f"{NETWORK}.1:{GCS_PORT}")
        resources = json.dumps({RESOURCES[self.name]: 1})
        command = [*self.prefix, RAY, "start", "--block", "--disable-usage-stats", "--num-gpus", "0", *where]
        command += ["--node-ip-address", self.address, "--num-cpus", str(CPUS), "--resources", resources]
        command += ["--object-store-memory", str(STORE_BYTES)]
        with self._log.open("ab") as log:
            self._ray = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)

    @property
    def ended(self) -> bool:
        return self._ray is not None and self._ray.poll() is not None

    def pids(self) -> list[int]:
        """Return the pids of all processes in the namespace."""
        said = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False)
        return [int(pid) for pid in said.stdout.split()]

    def kill(self) -> None:
        """Kill all processes of the node, as if the machine lost its power."""
        while pids := self.pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        if self._ray is not None:
            self._ray.wait()

    def cut(self) -> None:
        """Cut the node off from the bridge."""
        _ip("link", "set", self.interface, "down")

    def heal(self) -> None:
        _ip("link", "set", self.interface, "up")


class ThreeNodes:
    """The cluster and its Redis. `look` restarts nodes that have ended, as a supervisor on each machine would."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.nodes = {name: Node(name, number, folder) for number, name in enumerate(RESOURCES, start=1)}
        self.head = self.nodes[HEAD]
        self.redis = OwnRedis(folder, host=self.head.address, prefix=self.head.prefix)
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self._tokens = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        mine = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "DROVER_"))}
        self._env = {**mine, **self._tokens}

    @property
    def env(self) -> dict[str, str]:
        """Environment variables of a run on this cluster."""
        address = f"{self.head.address}:{GCS_PORT}"
        return {**self._tokens, "RAY_ADDRESS": address, "DROVER_REDIS_URL": self.redis.url}

    def __enter__(self) -> Self:
        try:
            _ip("link", "add", BRIDGE, "type", "bridge")
            _ip("link", "set", BRIDGE, "up")
            for node in self.nodes.values():
                node.make()
            self.redis.start()
            self.head.start(self._env)
            self._await_head()
            for name in (ROLLOUT, REWARD):
                self.nodes[name].start(self._env)
            self._await_marks()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.redis.kill()
        for node in self.nodes.values():
            node.remove()
        with suppress(subprocess.CalledProcessError):
            _ip("link", "del", BRIDGE)

    def look(self) -> None:
        """Restart the nodes, except the head, whose Ray has ended; kill their remaining processes first."""
        for node in self.nodes.values():
            if node is not self.head and node.ended:
                node.kill()
                node.start(self._env)

    def _await_head(self) -> None:
        code = f"import socket; socket.create_connection(({self.head.address!r}, {GCS_PORT}), 1)"
        self._await([*self.head.prefix, sys.executable, "-c", code], "head")

    def _await_marks(self) -> None:
        """Wait until all three nodes have joined."""
        code = (
            f"import ray; ray.init('{self.head.address}:{GCS_PORT}', logging_level='error', log_to_driver=False); "
            f"assert {set(RESOURCES.values())!r} <= set(ray.cluster_resources())"
        )
        self._await([*self.head.prefix, sys.executable, "-c", code], "nodes")

    def _await(self, command: list[str], what: str) -> None:
        gives_up_s = time.monotonic() + JOIN_S
        while True:
            asked = subprocess.run(command, capture_output=True, text=True, env=self._env, check=False)
            if asked.returncode == 0:
                return
            if time.monotonic() > gives_up_s:
                raise TimeoutError(f"no {what} after {JOIN_S:.0f} s: {asked.stderr[-500:]}")
            self.look()  # a node whose Ray gave up waiting for the head is restarted
            time.sleep(0.5)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
