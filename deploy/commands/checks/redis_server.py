"""Checks the Redis that runs use: it answers, suits drover, asks for a password, and keeps its data over a restart."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from drover.common.transport.connection import addresses, connect, reach
from drover.common.transport.embedded import EmbeddedRedis, find_server
from drover.common.transport.server_check import address, faults, on_this_machine, open_doors
from drover.deploy.cluster.connection import REDIS_URL, own_redis_url
from drover.deploy.cluster.jobs import in_job
from drover.deploy.cluster.ray_session import cluster_address
from drover.deploy.commands.checks.finding import Finding, State

GB = 1e9


def redis_server() -> list[Finding]:
    """Check every Redis that DROVER_REDIS_URL names; without one, the embedded Redis. Raises `TransportError`."""
    url = own_redis_url()
    if url:
        return [finding for one in addresses(url) for finding in named(one)]
    if in_job() or cluster_address():
        fix = f"start one that every node reaches (deploy/kuberay/redis.yaml), and set {REDIS_URL} on the head node"
        state: State = "problem" if in_job() else "advice"
        return [Finding("redis", state, f"{REDIS_URL} is unset: other nodes cannot reach an embedded Redis", fix)]
    with EmbeddedRedis() as server, connect(server.url) as client:
        version = client.info("server")["redis_version"]
    return [Finding("redis", "ok", f"a run starts its own: {find_server()}, version {version}")]


def named(url: str) -> list[Finding]:
    """Check the Redis at the URL. Raises `TransportError` if it does not answer."""
    client, facts = reach(url)
    client.close()
    room = f"{facts['used_memory'] / GB:.2f} GB used of {facts.get('maxmemory', 0) / GB:.2f}"
    if not facts.get("maxmemory"):
        room = f"{facts['used_memory'] / GB:.2f} GB used, no limit of its own"
    answers = Finding("redis", "ok", f"Redis {facts['redis_version']} answers at {address(url)}; {room}")
    problems = [Finding("redis", "problem", found, fix) for found, fix in faults(url, facts)]
    return [answers, *problems, *_log(facts), *tls(url)]


def _log(facts: dict[str, Any]) -> list[Finding]:
    if int(facts.get("aof_enabled", 0)):
        return []
    found = "keeps no log of its writes: after a restart of Redis, groups under way are drawn again"
    return [Finding("redis", "advice", found, "set appendonly yes, with a volume that outlives the server")]


def tls(url: str) -> list[Finding]:
    """Return advice if a password would cross a network unencrypted."""
    if on_this_machine(url) or urlsplit(url).scheme == "rediss" or open_doors(url):
        return []
    found = "is reached without TLS: the password crosses the network in the clear"
    return [Finding("redis", "advice", found, "use rediss://, or keep it inside a network that is yours alone")]
