"""The Redis that runs use: that it answers, suits drover, is guarded, and would outlive a restart."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from drover.common.transport.connection import addresses, connect
from drover.common.transport.embedded import EmbeddedRedis, find_server
from drover.deploy.cluster.connection import REDIS_URL, own_redis_url
from drover.deploy.cluster.jobs import in_job
from drover.deploy.cluster.ray_session import cluster_address
from drover.deploy.commands.checks.finding import Finding, State

HOME = ("localhost", "127.0.0.1", "::1")
GB = 1e9


def redis_server() -> list[Finding]:
    """Those that DROVER_REDIS_URL names, else the embedded one. Raises `TransportError`."""
    url = own_redis_url()
    if url:
        return [finding for one in addresses(url) for finding in _named(one)]
    if in_job() or cluster_address():
        fix = f"start one that every node reaches (deploy/kuberay/redis.yaml), and set {REDIS_URL} on the head node"
        state: State = "problem" if in_job() else "advice"
        return [Finding("redis", state, f"{REDIS_URL} is unset: other nodes cannot reach an embedded Redis", fix)]
    with EmbeddedRedis() as server, connect(server.url) as client:
        version = client.info("server")["redis_version"]
    return [Finding("redis", "ok", f"a run starts its own: {find_server()}, version {version}")]


def _named(url: str) -> list[Finding]:
    with connect(url) as client:
        facts: dict[str, Any] = client.info()
    parts = urlsplit(url)
    where = f"Redis {facts['redis_version']} answers at {parts.hostname or parts.path}:{parts.port or 6379}"
    room = f"{facts['used_memory'] / GB:.2f} GB used of {facts.get('maxmemory', 0) / GB:.2f}"
    if not facts.get("maxmemory"):
        room = f"{facts['used_memory'] / GB:.2f} GB used, no limit of its own"
    concerns = [*_policy(facts), *_persistence(facts), *guard(url)]
    return [Finding("redis", "ok", f"{where}; {room}"), *concerns]


def _policy(facts: dict[str, Any]) -> list[Finding]:
    policy = str(facts.get("maxmemory_policy", "noeviction"))
    if policy == "noeviction":
        return []
    found = (
        f"evicts what has a lifetime when it is full ({policy}): pictures and latents would be lost before their turn"
    )
    return [Finding("redis", "problem", found, "set maxmemory-policy noeviction")]


def _persistence(facts: dict[str, Any]) -> list[Finding]:
    if facts.get("role", "master") != "master":
        return [Finding("redis", "problem", "this is a replica", "name its primary in the URL")]
    if not int(facts.get("aof_enabled", 0)):
        found = "does not log what it is told: after a restart of Redis, groups under way are drawn again"
        return [Finding("redis", "advice", found, "set appendonly yes, with a volume that outlives the server")]
    if facts.get("aof_last_write_status", "ok") != "ok":
        return [Finding("redis", "problem", "cannot write its log", "make room on its volume")]
    return []


def guard(url: str) -> list[Finding]:
    """Password and TLS, as the URL says; a Redis on loopback needs neither."""
    parts = urlsplit(url)
    if parts.hostname in HOME:
        return []
    if not parts.password and "password=" not in parts.query:
        found = "takes commands without a password from beyond this machine"
        return [Finding("redis", "problem", found, "set requirepass, and write redis://:PASSWORD@HOST:PORT")]
    if parts.scheme != "rediss":
        found = "is reached without TLS: whoever sees the network sees the password"
        return [Finding("redis", "advice", found, "use rediss://, or keep it inside a network that is yours alone")]
    return []
