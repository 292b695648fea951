"""The Ray of a run: the cluster that RAY_ADDRESS names, or one of the run's own here; and in words why there is none."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from drover.common.errors import ConfigError
from drover.common.stopping import children_outlive_the_session
from drover.deploy.cluster import placing
from drover.deploy.cluster.environments import sweep
from drover.deploy.config import RunConfig

RAY_ADDRESS = "RAY_ADDRESS"
NAMESPACE = "drover"  # names inside it carry the run's
ANSWER_S = 5.0  # in which a cluster accepts a connection
# Ray asks a head that does not answer for minutes; with this, once, which takes it 40 s.
ONE_TRY = {"RAY_gcs_server_port_wait_time_s": "1"}
_HOST_PORT = re.compile(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+):(\d{1,5})", re.ASCII)


def cluster_address() -> str:
    """HOST:PORT of the cluster to join, or "auto" for the one on this machine; "" where a run starts its own Ray.

    Raises `ConfigError` for everything else that people have in RAY_ADDRESS.
    """
    said = os.environ.get(RAY_ADDRESS, "")
    address = said.strip()
    if address in ("", "local"):
        return ""
    match = _HOST_PORT.fullmatch(address)
    if address == "auto" or (match is not None and 0 < int(match[2]) < 1 << 16):
        return address
    if address.startswith(("http://", "https://")):
        wanted = f"submit the run there with `ray job submit --address {address} -- drover train ...`, or unset it"
    elif address.startswith("ray://"):
        wanted = "start the run on a node of the cluster, with HOST:PORT of its head, or unset it"
    else:
        wanted = "write HOST:PORT of a cluster's head, as in 10.0.0.7:6379, or unset it to start a Ray here"
    raise ConfigError(f"{RAY_ADDRESS} is {said!r}, which drover cannot join; {wanted}")


@contextmanager
def ray_session(address: str, config: RunConfig) -> Iterator[None]:
    """Join the Ray at ``address``, or with "" start one for this run alone. Raises `ConfigError` where that fails."""
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")  # it would ask the dashboard, which is off here
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RUNTIME_ENV_RETRY_TIMES", "1")  # of a reward's; pip tries downloads again by itself
    asks_to_stop = signal.getsignal(signal.SIGTERM)
    own_session = _join(address) if address else _start(config)
    signal.signal(signal.SIGTERM, asks_to_stop)  # Ray's own, which it has set, exits without a checkpoint
    import ray

    try:
        yield
    finally:
        ray.shutdown()
        if own_session:
            sweep(own_session)


def _join(address: str) -> str:
    check_answers(address)
    for name, value in ONE_TRY.items():
        os.environ.setdefault(name, value)
    try:
        _init(address=address)
    except Exception as error:
        raise refusal(address, "".join(traceback.format_exception(error))) from error
    return ""


def _start(config: RunConfig) -> str:
    """The folder of its session."""
    # The roles of a laptop share its cores: workers ask for none, so that Ray refuses none that a run is scaled to.
    (here,) = placing.this_machine(config)
    offers = {"num_cpus": int(here[placing.CPU]), "num_gpus": int(here[placing.GPU])}
    try:
        with children_outlive_the_session():
            context = _init(address="local", include_dashboard=False, **offers)
    except Exception as error:
        raise not_started(error) from error
    return str(context.address_info["session_dir"])


def _init(**options: Any) -> Any:
    import ray

    # Ray tells each error that it meets with its traceback: that is for run.log, not for the terminal.
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray").propagate = True
    return ray.init(namespace=NAMESPACE, log_to_driver=False, configure_logging=False, **options)


def check_answers(address: str) -> None:
    """Raises `ConfigError` when nobody listens at HOST:PORT, which Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    if not host:
        return  # "auto" is Ray's to resolve
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except OSError as error:
        raise ConfigError(
            f"no Ray answers at {address} ({error.strerror or error}); correct RAY_ADDRESS, or unset it to start one here"
        ) from error


def refusal(address: str, words: str) -> ConfigError:
    """Why the cluster at ``address`` could not be joined, and the remedy. ``words``: all that Ray printed or raised."""
    if "uthenticat" in words or "AuthToken" in words:
        found = f"the Ray at {address} checks tokens and refuses ours"
        fix = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the cluster's token"
    elif "ersion mismatch" in words:
        found = f"the Ray at {address} has another version of Ray or Python"
        fix = "use the same image, or the same constraints.txt, everywhere"
    elif "imed out" in words or "http2" in words:
        found = f"nothing at {address} answers as a Ray head does"
        fix = f"write the head's HOST:PORT, as `ray start --head` prints it, into {RAY_ADDRESS}"
    else:
        last = ([line.strip() for line in words.splitlines() if line.strip()] or ["it gives no reason"])[-1]
        found, fix = f"cannot join the Ray at {address}: {last[:300]}", "look at `ray status` there"
    return ConfigError(f"{found}; {fix}")


def not_started(error: Exception) -> ConfigError:
    """Why Ray, which raised ``error``, did not start here, and the remedy."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if "AF_UNIX path" in str(error):
        return ConfigError(
            f"the path {folder!r} is too long for Ray's sockets, which lie in it; set RAY_TMPDIR to a short folder, such as /tmp"
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return ConfigError(
        f"Ray cannot start here ({reason}); mend that, and see its logs in {folder}/ray/session_latest/logs"
    )
