"""`drover serve`: answers one reward over HTTP, for `http_reward` of runs elsewhere and for other clients of its format."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import pkgutil
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_origin

import tyro

from drover.common import log as logs
from drover.common import secrets
from drover.common.errors import ConfigError
from drover.common.protocols import Reward
from drover.common.stopping import stop_on_signals
from drover.deploy.catalogue import find
from drover.deploy.cluster.connection import LOOPBACK, serve_metrics
from drover.reward_servers import rewards as package
from drover.reward_servers.http.endpoint import NO_TOKEN, SCORE, Endpoint
from drover.reward_servers.http.limits import Limits
from drover.reward_servers.http.window import Window

TOKEN = "DROVER_REWARD_TOKEN"  # or DROVER_REWARD_TOKEN_FILE, a file's path
LOOPBACKS = ("127.0.0.1", "::1", "localhost")
LOOK_S = 0.5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeOptions:
    """Answer a reward over HTTP. The token that callers need comes from DROVER_REWARD_TOKEN or DROVER_REWARD_TOKEN_FILE."""

    reward: tyro.conf.Positional[str]
    """A reward of drover by the name of its file, such as jpeg_size, or your own as path/to/file.py:description."""
    options: tyro.conf.Positional[tuple[str, ...]] = ()
    """Options of the reward, as OPTION=VALUE: prefer=large."""
    host: str = LOOPBACK
    """Address to listen on; all but loopback are reachable from outside: give a certificate then."""
    port: int = 8490
    """Port to listen on; 0 takes a free one."""
    certificate: Path | None = None
    """PEM file of the server's certificate chain, for https."""
    key: Path | None = None
    """PEM file of the certificate's private key."""
    device: str = ""
    """Device on which the reward computes; default: cuda if there is a GPU, else cpu."""
    max_batch: int = 64
    """Most samples, of one or more callers, in one call of the reward."""
    deadline_s: float = 120.0
    """Seconds after which a call of the reward is abandoned and its samples are masked."""
    connections: int = 64
    """Most callers at one time; further ones are told to come back."""
    metrics_host: str = LOOPBACK
    """Address at which metrics are served, on a port of their own."""
    json: bool = False
    """Print the addresses as JSON."""


def run(options: ServeOptions) -> int:
    """Answer requests until the process is asked to stop (`drover.common.stopping`); return the exit code."""
    token = secrets.from_environment(TOKEN)
    if not token:
        raise ConfigError(NO_TOKEN)
    tls = _tls(options)
    reward = description(options.reward, options.options)
    logs.configure("serve", reward.name)
    limits = Limits(connections=options.connections)
    meter, metrics = serve_metrics(options.metrics_host)
    window = Window(
        reward.name, reward.load(options.device or _device()), meter,
        max_batch=options.max_batch, deadline_s=options.deadline_s,
    )  # fmt: skip
    stopping, address = stop_on_signals(), (options.host, options.port)
    with window, Endpoint(address, token, window.score, reward.takes, limits=limits, tls=tls) as server:
        _announce(options, reward.name, server, metrics)
        answering = threading.Thread(target=server.serve_forever, name="answering", daemon=True)
        answering.start()
        try:
            while not stopping():
                window.check()
                time.sleep(LOOK_S)
        finally:
            server.shutdown()
    return 0


def description(name: str, options: tuple[str, ...] = ()) -> Reward:
    """Return the reward of that name with its options set. Raises `ConfigError`, which lists the rewards or options."""
    kind: Callable[..., Any] = find(name) if ":" in name else _shipped(name)
    given = dict(_split(option) for option in options)
    hints = inspect.get_annotations(kind, eval_str=True)
    known = [field.name for field in fields(kind)] if is_dataclass(kind) else list(inspect.signature(kind).parameters)
    if unknown := sorted(given.keys() - set(known)):
        raise ConfigError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
    words: list[str] = []
    for key, value in given.items():
        several = get_origin(hints.get(key)) is tuple  # its value is split at spaces
        words += [f"--{key.replace('_', '-')}", *(value.split() if several else [value])]
    reward: Any = tyro.cli(kind, prog=f"drover serve {name}", args=words)
    if not isinstance(getattr(reward, "name", None), str) or not callable(getattr(reward, "load", None)):
        raise ConfigError(f"{name} is no reward; a reward has a name and load(device)")
    if not isinstance(getattr(reward, "takes", None), type):
        raise ConfigError(f"{name} does not say what media it scores; give it takes: ClassVar[type[Media]] = Pictures")
    return reward


def _shipped(name: str) -> Callable[..., Any]:
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    if name not in names:
        raise ConfigError(f"there is no reward {name!r}; there are {', '.join(names)}; your own: path/to/file.py:name")
    module = importlib.import_module(f"{package.__name__}.{name}")
    own = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
    (kind,) = (kind for kind in own if is_dataclass(kind) and hasattr(kind, "load"))
    return kind


def _split(option: str) -> tuple[str, str]:
    name, equals, value = option.partition("=")
    if not equals:
        raise ConfigError(f"{option!r} is no option of a reward; write OPTION=VALUE")
    return name.replace("-", "_"), value


def _tls(options: ServeOptions) -> ssl.SSLContext | None:
    """Return the context for https; None for http. Raises `ConfigError` for files that are no certificate and key."""
    if options.certificate is None:
        if options.key is not None:
            raise ConfigError("--key without --certificate; give both for https")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(options.certificate, options.key, password=_no_password)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{options.certificate} and {options.key or 'no --key'} cannot be used for https "
            f"({error.strerror or type(error).__name__}); give PEM files of a certificate and its unencrypted key"
        ) from None
    return context


def _no_password() -> str:
    raise OSError(0, "the key is encrypted")  # otherwise OpenSSL would ask at the terminal


def _announce(options: ServeOptions, name: str, server: Endpoint, metrics: str) -> None:
    scheme = "http" if options.certificate is None else "https"
    host = f"[{options.host}]" if ":" in options.host else options.host
    url = f"{scheme}://{host}:{server.server_port}{SCORE}"
    if options.host not in LOOPBACKS and scheme == "http":
        log.warning("the token and all pictures cross the network in the clear; give --certificate and --key")
    if options.json:
        print(json.dumps({"reward": name, "url": url, "metrics": f"http://{metrics}/metrics"}), flush=True)
    else:
        print(f"{name} at {url}, metrics at http://{metrics}/metrics; Ctrl-C ends it", flush=True)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
