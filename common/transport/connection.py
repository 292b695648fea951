"""Reaching one Redis: errors that name their remedy, and patience with a server that restarts."""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import parse_qs, quote, urlsplit

import redis
from redis import exceptions as failures
from redis.backoff import NoBackoff
from redis.retry import Retry

from drover.common.errors import CutOff, TransportError
from drover.common.transport.server_check import CLUSTER, REPLICA, check_server

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0
REPLY_TIMEOUT_S = 5.0  # also that what was sent may stay unacknowledged, where the kernel can tell
BULK_TIMEOUT_S = 60.0  # of a large value that is on its way: many may share a network
PATIENCE_S = 30.0  # a Redis that restarts is back well within this
FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 2.0
LOST = (failures.ConnectionError, failures.TimeoutError, OSError)
REFUSED = (failures.AuthenticationError, failures.AuthorizationError)
# Part of Redis' words when it refuses a command, or of the exception's name -> (the fault, its remedy).
REFUSALS = {
    "NoPermission": ("refuses a command", "check the user's rights; `drover redis-user` prints those that a run needs"),
    "ReadOnly": REPLICA,
    "MasterDown": REPLICA,
    "Moved": CLUSTER,
    "CrossSlot": CLUSTER,
    "ClusterDown": CLUSTER,
    "MISCONF": ("cannot save its data, so it takes no writes", "make room on its volume, or see its log"),
    "NOREPLICAS": ("has too few replicas, so it takes no writes", "see its min-replicas-to-write"),
    "unknown command": (
        "lacks a command that drover needs",
        "see rename-command in its settings, or use another Redis",
    ),
    "DENIED": ("takes no commands from other machines", "set requirepass, and write redis://:PASSWORD@HOST:PORT"),
}

log = logging.getLogger(__name__)


def mask(url: str) -> str:
    """The URL with its password starred out, for logs and errors."""
    starred = re.sub(r"(://[^:@/]*):.*@", r"\1:***@", url)
    # A user without a password is more often a password without its colon.
    starred = re.sub(r"://[^:@/]+@", "://***@", starred)
    return re.sub(r"([?&]password=)[^&]*", r"\1***", starred)


def complete(url: str, *, password: str = "", ca: str = "") -> str:
    """The URL with what it need not spell out: the password, and the file of the CA that signed the server's certificate.

    Raises `TransportError` where the URL says something else about either.
    """
    if not password and not ca:
        return url
    try:
        parts = urlsplit(url)
        has_password, options = bool(parts.password), parse_qs(parts.query)
    except ValueError:
        return url  # `open_client` says what is wrong with it
    if password:
        if has_password or "password" in options:
            raise TransportError(f"{mask(url)} brings a password, and the environment another; keep one of them")
        user, _, address = parts.netloc.rpartition("@")
        parts = parts._replace(netloc=f"{user.rstrip(':')}:{quote(password, safe='')}@{address}")
    if ca:
        if parts.scheme != "rediss":
            raise TransportError(f"a CA is given for {mask(url)}, which does not use TLS; write rediss://")
        if "ssl_ca_certs" in options:
            raise TransportError(f"{mask(url)} names a CA, and the environment another; keep one of them")
        query = f"ssl_ca_certs={quote(ca, safe='/')}"
        parts = parts._replace(query=f"{parts.query}&{query}" if parts.query else query)
    # `geturl` would lose the slashes of a URL without a host, such as unix:///path.
    query, fragment = f"?{parts.query}" if parts.query else "", f"#{parts.fragment}" if parts.fragment else ""
    return f"{parts.scheme}://{parts.netloc}{parts.path}{query}{fragment}"


def addresses(urls: str) -> list[str]:
    """One or more URLs, with spaces between them. Raises `TransportError`, which shows none of their passwords."""
    found = urls.split()
    wrong = [number for number, url in enumerate(found, 1) if not url.startswith(("redis://", "rediss://", "unix://"))]
    if wrong and len(found) > 1:  # the one that is alone is explained by `open_client`
        raise TransportError(
            f"of {len(found)} Redis URLs with spaces between them, number {wrong[0]} does not begin with redis://, "
            "rediss:// or unix://; %-escape a space inside a password as %20"
        )
    if len(set(found)) < len(found):
        raise TransportError(f"{mask(urls)} names one Redis twice; name each once")
    return found or [urls]


def open_client(url: str, *, timeout_s: float = REPLY_TIMEOUT_S) -> redis.Redis:
    """A client that connects at first use; safe to share between threads. ``timeout_s``: of sending a command, whole, and
    of each part of its answer.
    """
    unacknowledged = (
        {socket.TCP_USER_TIMEOUT: int(1000 * REPLY_TIMEOUT_S)} if hasattr(socket, "TCP_USER_TIMEOUT") else {}
    )
    over_tcp = {} if url.startswith("unix:") else {"socket_keepalive": True, "socket_keepalive_options": unacknowledged}
    try:
        return redis.Redis.from_url(
            url,
            protocol=2,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=timeout_s,
            **over_tcp,
            socket_read_size=1 << 16,
            retry=Retry(NoBackoff(), 0),  # retrying is `Link`'s, which counts
        )
    except ValueError:
        raise TransportError(
            f"{mask(url)!r} is no Redis URL; write redis://:PASSWORD@HOST:PORT, rediss:// for TLS, or unix:///PATH"
        ) from None


def reach(url: str) -> tuple[redis.Redis, dict[str, Any]]:
    """A client whose server answered, and the server's INFO. Tries once. Raises `TransportError` with the remedy."""
    client = open_client(url)
    try:
        client.ping()
        return client, client.info()
    except (failures.RedisError, OSError) as error:
        client.close()
        raise explain(error, url) from error


def connect(url: str) -> redis.Redis:
    """A client whose server answered and can serve runs. Tries once. Raises `TransportError` or `ConfigError`."""
    client, facts = reach(url)
    check_server(url, mask(url), facts)
    return client


def explain(error: Exception, url: str) -> TransportError:
    """What happened, where, and what to do about it; the password stays out."""
    said, where = str(error), mask(url)
    if isinstance(error, failures.OutOfMemoryError) or "OOM" in said:
        text, fix = "has no memory left", "raise its maxmemory, or lower samples per group or max_lag"
    elif "NOAUTH" in said or "Authentication required" in said:
        text = "wants a password and the URL has none"
        fix = "write redis://:PASSWORD@HOST:PORT, or set DROVER_REDIS_PASSWORD_FILE"
    elif "without any password configured" in said:
        text, fix = "has no password but the URL brings one", "remove it from the URL, or set requirepass"
    elif isinstance(error, REFUSED) or "WRONGPASS" in said:
        text, fix = "refuses the user or password", "check the URL, and %-escape special characters in the password"
    elif "SSL" in said or "certificate" in said:
        text = "does not agree on TLS"
        fix = "use rediss:// for a TLS port and name the CA of its certificate in DROVER_REDIS_CA, else redis://"
    elif known := [meaning for mark, meaning in REFUSALS.items() if mark in f"{type(error).__name__} {said}"]:
        text, fix = known[0]
    elif isinstance(error, failures.InvalidResponse):
        text, fix = "answers, but not as Redis does", "check the port, and use rediss:// if it speaks TLS"
    elif isinstance(error, failures.TimeoutError):
        text, fix = "does not answer in time", "check the address, firewalls, and that rediss:// is used for TLS alone"
    elif isinstance(error, LOST):
        text, fix = "cannot be reached", "check that it runs, its address and port, and use rediss:// if it speaks TLS"
    else:
        text, fix = "refuses a command", "see what it said"
    lost = isinstance(error, LOST) and not isinstance(error, REFUSED)
    return (CutOff if lost else TransportError)(f"Redis at {where} {text}; {fix}. It said: {said}")


def send(client: redis.Redis, *command: Any) -> Any:
    """The answer to one command, given word by word: plainer than the wrappers, and the same for every version."""
    return client.execute_command(*command)


class Link:
    """A client that outlives a restart of its server: a lost connection is retried, counted, for ``patience_s``."""

    def __init__(self, url: str, *, patience_s: float = PATIENCE_S) -> None:
        """Returns when the server has answered: who starts while it restarts waits as everybody does.

        Raises `TransportError`, or `ConfigError` for a server that cannot serve runs.
        """
        self.retries = 0
        self._url = url
        self._patience_s = patience_s
        self.on_outage: Callable[[str], None] = log.warning  # hears when an outage begins and when it ends
        self.client = open_client(url)
        self.bulk = open_client(url, timeout_s=BULK_TIMEOUT_S)  # for large values
        check_server(url, mask(url), self.call(lambda client: client.info()))

    def call(self, action: Callable[[redis.Redis], T], *, patience_s: float | None = None) -> T:
        """Run ``action``, again after a lost connection: it must bear being done twice. Raises `TransportError`."""
        patience_s = self._patience_s if patience_s is None else patience_s
        began_s, wait_s, waited = time.monotonic(), FIRST_WAIT_S, False
        while True:
            try:
                answer = action(self.client)
            except (failures.RedisError, OSError) as error:
                transient = isinstance(error, LOST) and not isinstance(error, REFUSED)
                if isinstance(error, failures.ResponseError) and not transient and _is_for_caller(error):
                    raise
                if not transient or time.monotonic() + wait_s > began_s + patience_s:
                    raise explain(error, self._url) from error
                self.retries += 1
                if not waited:
                    self._tell(f"cannot be reached; trying again for {patience_s:.0f} s: {error}")
            else:
                if waited:
                    self._tell(f"answers again, after {time.monotonic() - began_s:.1f} s")
                return answer
            waited = True
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _tell(self, text: str) -> None:
        self.on_outage(f"Redis at {mask(self._url)} {text}")

    def close(self) -> None:
        self.client.close()
        self.bulk.close()


def _is_for_caller(error: Exception) -> bool:
    """About consumer groups, which streams make: gone, as after a restart without persistence, or there already."""
    return any(word in str(error) for word in ("NOGROUP", "BUSYGROUP"))
