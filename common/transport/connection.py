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

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0
REPLY_TIMEOUT_S = 5.0  # also that what was sent may stay unacknowledged, where the kernel can tell
BULK_TIMEOUT_S = 60.0  # of a large value that is on its way: many may share a network
PATIENCE_S = 30.0  # a Redis that restarts is back well within this
FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 2.0
OLDEST_SERVER = (6, 2)  # the first with XAUTOCLAIM
LOST = (failures.ConnectionError, failures.TimeoutError, OSError)
REFUSED = (failures.AuthenticationError, failures.AuthorizationError)

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
    return parts.geturl()


def addresses(urls: str) -> list[str]:
    """One or more URLs, with spaces between them. Raises `TransportError`, which shows none of their passwords."""
    found = urls.split()
    wrong = [number for number, url in enumerate(found, 1) if not url.startswith(("redis://", "rediss://", "unix://"))]
    if wrong and len(found) > 1:  # the one that is alone is explained by `open_client`
        raise TransportError(
            f"of {len(found)} Redis URLs with spaces between them, number {wrong[0]} does not begin with redis:// or "
            "rediss://; %-escape a space inside a password as %20"
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
            f"{mask(url)!r} is no Redis URL; write redis://:PASSWORD@HOST:PORT, or rediss:// for TLS"
        ) from None


def connect(url: str) -> redis.Redis:
    """A client whose server answered and suits drover. Tries once. Raises `TransportError` with the remedy."""
    client = open_client(url)
    try:
        client.ping()
        facts: dict[str, Any] = client.info()
    except (failures.RedisError, OSError) as error:
        client.close()
        raise explain(error, url) from error
    _check_server(facts, url)
    return client


def _check_server(facts: dict[str, Any], url: str) -> None:
    came = str(facts.get("redis_version", "0"))
    if tuple(int(part) for part in re.findall(r"\d+", came)[:2]) < OLDEST_SERVER:
        raise TransportError(f"{mask(url)} runs Redis {came}; drover needs 6.2 or newer")
    if str(facts.get("maxmemory_policy", "")).startswith("allkeys"):
        raise TransportError(
            f"{mask(url)} evicts keys when full ({facts['maxmemory_policy']}), which loses messages without a word; "
            "set maxmemory-policy noeviction"
        )


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
    elif isinstance(error, failures.InvalidResponse):
        text, fix = "answers, but not as Redis does", "check the port, and use rediss:// if it speaks TLS"
    elif isinstance(error, failures.TimeoutError):
        text, fix = "does not answer in time", "check the address, firewalls, and that rediss:// is used for TLS alone"
    elif isinstance(error, LOST):
        text, fix = "cannot be reached", "check that it runs, its address and port, and use rediss:// if it speaks TLS"
    else:
        text, fix = "refuses a command", "check the user's rights and that this is a primary, not a replica"
    lost = isinstance(error, LOST) and not isinstance(error, REFUSED)
    return (CutOff if lost else TransportError)(f"Redis at {where} {text}; {fix}. It said: {said}")


def send(client: redis.Redis, *command: Any) -> Any:
    """The answer to one command, given word by word: plainer than the wrappers, and the same for every version."""
    return client.execute_command(*command)


class Link:
    """A client that outlives a restart of its server: a lost connection is retried, counted, for ``patience_s``."""

    def __init__(self, url: str, *, patience_s: float = PATIENCE_S) -> None:
        """Returns when the server has answered: who starts while it restarts waits as everybody does. Raises `TransportError`."""
        self.retries = 0
        self._url = url
        self._patience_s = patience_s
        self.client = open_client(url)
        self.bulk = open_client(url, timeout_s=BULK_TIMEOUT_S)  # for large values
        _check_server(self.call(lambda client: client.info()), url)

    def call(self, action: Callable[[redis.Redis], T], *, patience_s: float | None = None) -> T:
        """Run ``action``, again after a lost connection: it must bear being done twice. Raises `TransportError`."""
        gives_up_s = time.monotonic() + (self._patience_s if patience_s is None else patience_s)
        wait_s = FIRST_WAIT_S
        while True:
            try:
                return action(self.client)
            except (failures.RedisError, OSError) as error:
                transient = isinstance(error, LOST) and not isinstance(error, REFUSED)
                if isinstance(error, failures.ResponseError) and not transient and _is_for_caller(error):
                    raise
                if not transient or time.monotonic() + wait_s > gives_up_s:
                    raise explain(error, self._url) from error
                self.retries += 1
                log.warning("lost Redis at %s, retry %d in %.2f s: %s", mask(self._url), self.retries, wait_s, error)
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def close(self) -> None:
        self.client.close()
        self.bulk.close()


def _is_for_caller(error: Exception) -> bool:
    """About consumer groups, which streams make: gone, as after a restart without persistence, or there already."""
    return any(word in str(error) for word in ("NOGROUP", "BUSYGROUP"))
