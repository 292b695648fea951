"""One run as on a shared cluster: it uses Redis over TLS as a user with few rights, and a reward behind a token.

Neither secret may be seen anywhere, no socket may listen beyond loopback, and no file of the run may execute code.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import signal
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import psutil
import pytest

from drover.common.transport.connection import connect
from drover.common.transport.embedded import EmbeddedRedis
from drover.deploy.commands.redis_user import setuser_line
from tests.common.transport.tls import TlsFront, make_certificates
from tests.end_to_end.service import DROVER, PATIENCE_S, Train, clean_environment, command_lines

pytestmark = [
    pytest.mark.service,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl"),
]
RECIPE = f"{Path(__file__).with_name('secret_recipes.py')}:remote_toy"
WRITTEN = {".log", ".safetensors", ".json", ".jsonl", ".png", ".npz", ".yaml", ".txt", ".csv", ""}


@dataclass
class Seen:
    """All that other users of the machine could see of the run, during it and after it."""

    secrets: dict[str, str]
    run: Train
    texts: dict[str, str] = field(default_factory=dict)  # place -> its text
    listening: dict[str, set[str]] = field(default_factory=dict)  # process -> addresses


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("secrets")
    password, token = f"redis-{secrets.token_hex(16)}", f"reward-{secrets.token_hex(16)}"
    certificates = make_certificates(folder)
    with EmbeddedRedis() as redis, TlsFront(urlsplit(redis.url).port or 0, certificates) as front:
        connect(redis.url).execute_command(*setuser_line("run", password).split())
        environment = {
            "DROVER_REDIS_URL": f"rediss://drover-run:{password}@127.0.0.1:{front.port}/0",
            "DROVER_REDIS_CA": str(certificates.ca),
            "DROVER_REWARD_TOKEN": token,
        }
        with (
            served(folder, environment) as (url, server),
            Train(RECIPE, "--url", url, "--learner-ranks", "2", runs_dir=folder, env=environment) as run,
        ):
            seen = Seen({"password": password, "token": token}, run)
            run.await_workers("actor-0", "point-0")
            run.await_update(1)
            look_at_life(seen, server)
            run.finish()
        assert connect(redis.url).dbsize() == 0
        look_at_remains(seen, folder)
        yield seen


class served:
    """``drover serve`` of the toy's reward; (its url, its process)."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder, self._environment = folder, {**clean_environment(), **environment}

    def __enter__(self) -> tuple[str, psutil.Process]:
        with (self._folder / "serve.err").open("wb") as err:
            self._process = subprocess.Popen(
                [DROVER, "serve", "toy_point", "--port", "0", "--json"],
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=err,
            )
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())["url"], psutil.Process(self._process.pid)

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(PATIENCE_S) == 0
        assert self._process.stdout is not None
        self._process.stdout.close()


def look_at_life(seen: Seen, server: psutil.Process) -> None:
    """Note the command lines, the listening sockets and the metrics of every process."""
    seen.run.look()
    family = {psutil.Process(seen.run.process.pid), server, *seen.run.family}
    seen.texts |= {f"argv of {pid}": line for pid, line in command_lines(family).items()}
    for process in family:
        try:
            name = f"{process.name()} {process.pid}"
            sockets = [
                one for one in process.net_connections("inet") if one.status in ("LISTEN", "NONE") and not one.raddr
            ]
        except psutil.Error:
            continue
        seen.listening[name] = {one.laddr.ip for one in sockets}
    for name, address in seen.run.targets().items():
        with urlopen(f"http://{address}/metrics", timeout=30) as page:
            seen.texts[f"metrics of {name}"] = page.read().decode()


def look_at_remains(seen: Seen, folder: Path) -> None:
    """Note all files and all output of the run, and the logs of its Ray."""
    sessions = {found for text in seen.texts.values() for found in re.findall(r"(/\S*/session_[0-9_\-]+)", text)}
    assert sessions, "no session of Ray in any command line"
    for place in (folder, *map(Path, sorted(sessions))):
        for path in (found for found in place.rglob("*") if found.is_file() and found.stat().st_size < 64 << 20):
            seen.texts[str(path)] = path.read_bytes().decode("latin-1")


def test_the_run_learned_over_tls_as_a_user_with_few_rights_from_a_reward_behind_a_token(seen: Seen) -> None:
    summary = seen.run.summary
    assert summary["ended"] == "finished" and summary["updates"] == 30
    assert summary["ledger"]["trained"] == 60
    assert summary["reward_after"]["anywhere/point"] > summary["reward_before"]["anywhere/point"]


def test_no_secret_is_in_a_command_line_a_metric_a_log_or_a_file(seen: Seen) -> None:
    assert len([where for where in seen.texts if where.startswith("argv")]) > 8
    assert len([where for where in seen.texts if where.startswith("metrics")]) >= 4
    assert [where for where in seen.texts if where.endswith("run.err")]
    found = {
        (name, where) for where, text in seen.texts.items() for name, value in seen.secrets.items() if value in text
    }
    assert found == set()


def test_nothing_listens_beyond_loopback(seen: Seen) -> None:
    assert sum(bool(addresses) for addresses in seen.listening.values()) > 8
    assert sum("RayTrain" in name for name, addresses in seen.listening.items() if addresses) == 2, (
        seen.listening.keys()
    )
    beyond = {
        name: sorted(addresses - {"127.0.0.1", "::1", "::ffff:127.0.0.1"}) for name, addresses in seen.listening.items()
    }
    assert {name: addresses for name, addresses in beyond.items() if addresses} == {}


def test_nothing_the_run_leaves_can_execute_code(seen: Seen) -> None:
    files = [path for path in seen.run.folder.path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files if path.suffix in (".safetensors", ".json", ".npz")}
    assert [str(path) for path in files if path.suffix not in WRITTEN] == []
    for path in files:
        content = path.read_bytes()
        # A pickle begins with its protocol; torch's files are archives with one inside.
        assert not re.match(rb"\x80[\x01-\x05]", content), path
        if zipfile.is_zipfile(path):
            assert path.suffix == ".npz" and not [name for name in zipfile.ZipFile(path).namelist() if ".pkl" in name]
            with np.load(path, allow_pickle=False) as arrays:
                assert [arrays[name].dtype.hasobject for name in arrays.files].count(True) == 0


def test_a_run_without_rights_to_its_name_ends_at_once_and_shows_no_secret(seen: Seen, tmp_path: Path) -> None:
    password = seen.secrets["password"]
    with EmbeddedRedis() as redis:
        connect(redis.url).execute_command(*setuser_line("other", password, user="drover-run").split())
        port = urlsplit(redis.url).port
        environment = {
            "DROVER_REDIS_URL": f"redis://drover-run:{password}@127.0.0.1:{port}/0",
            "DROVER_REWARD_TOKEN": seen.secrets["token"],
        }
        with Train(RECIPE, "--url", "http://127.0.0.1:9/score", runs_dir=tmp_path, env=environment) as run:
            assert run.end() == 1
            said = run.out + run.err
    assert "refuses a command; check the user's rights" in said
    assert password not in said and "Traceback" not in said
