"""Check that a Redis can serve runs. `drover doctor` reports each fault; the processes of a run refuse such a Redis."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from drover.common.errors import ConfigError

OLDEST = (6, 2)  # the first version with XAUTOCLAIM
PORT = 6379

# Faults that either INFO shows at the start, or an error shows later.
REPLICA = ("is a replica, which takes no writes", "name its primary in the URL")
CLUSTER = (
    "is part of a Redis Cluster, which scatters the keys of a run",
    "name a Redis that is no cluster, or several of them with spaces between their URLs",
)

Fault = tuple[str, str]
"""(fault, remedy)."""


def check_server(url: str, name: str, facts: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for the first fault. ``name`` is the URL as it may be shown."""
    for found, fix in faults(url, facts):
        raise ConfigError(f"Redis at {name} {found}; {fix}")


def faults(url: str, facts: Mapping[str, Any]) -> list[Fault]:
    """All faults that would make a run fail, lose messages, or open it to others. ``facts`` is the server's INFO."""
    mode, policy = facts.get("redis_mode"), str(facts.get("maxmemory_policy", "noeviction"))
    found: list[Fault] = []
    if mode == "sentinel":
        return [("is a Sentinel", "name the primary that it watches in the URL")]
    if _version(facts) < OLDEST:
        found.append((f"is of version {facts.get('redis_version')}, which lacks commands", "use 6.2 or newer"))
    if mode == "cluster":
        found.append(CLUSTER)
    if facts.get("role", "master") != "master":
        found.append(REPLICA)
    if policy != "noeviction":
        lost = "messages, pictures and latents would be lost before their turn"
        found.append((f"evicts when it is full ({policy}): {lost}", "set maxmemory-policy noeviction"))
    if int(facts.get("aof_enabled", 0)) and facts.get("aof_last_write_status", "ok") != "ok":
        found.append(("cannot write its log", "make room on its volume"))
    return found + open_doors(url)


def open_doors(url: str) -> list[Fault]:
    """The fault of a server that other machines reach without a password."""
    parts = urlsplit(url)
    if on_this_machine(url) or parts.password or "password=" in parts.query:
        return []
    found = "takes commands without a password from beyond this machine"
    return [(found, "set requirepass, and write redis://:PASSWORD@HOST:PORT")]


def on_this_machine(url: str) -> bool:
    """Whether the URL names a socket file, or a host that only this machine reaches."""
    host = urlsplit(url).hostname or "localhost"
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address(url: str) -> str:
    """HOST:PORT, or the path of a socket file."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return parts.path
    host = parts.hostname or "localhost"
    return f"[{host}]:{parts.port or PORT}" if ":" in host else f"{host}:{parts.port or PORT}"


def _version(facts: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", str(facts.get("redis_version", "0")))[:2])
