"""The container image, deploy/compose, and the Redis that both ways of deploying start."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from drover.common.errors import TransportError
from drover.common.transport.connection import connect
from drover.common.transport.embedded import find_server
from tests.end_to_end.ray_nodes import free_port

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose"
ROLES = ("rollout", "reward", "learner")
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((COMPOSE / "compose.yaml").read_text())


def test_compose_has_a_node_for_each_role_and_what_watches_them(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {"head", *ROLES, "redis", "prometheus", "grafana"}
    for role in ROLES:
        assert f'{{"{role}": 1}}' in services[role]["command"]
        assert services[role]["image"] == services["head"]["image"]
        assert services[role]["volumes"] == ["runs:/runs"]


def test_compose_listens_on_loopback_alone_and_holds_no_secret(compose: dict[str, Any]) -> None:
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert sorted(published) == ["127.0.0.1:3000:3000", "127.0.0.1:8265:8265", "127.0.0.1:9090:9090"]
    asked = set(re.findall(r"\$\{(\w+):\?", (COMPOSE / "compose.yaml").read_text()))
    example = dict(line.split("=") for line in (COMPOSE / ".env.example").read_text().splitlines() if "=" in line)
    assert asked == {"DROVER_REDIS_PASSWORD", "RAY_AUTH_TOKEN", "GRAFANA_PASSWORD"}
    assert asked <= example.keys()
    assert set(example.values()) == {""}
    for name, service in compose["services"].items():
        for variable, value in (service.get("environment") or {}).items():
            if re.search("PASSWORD|TOKEN|AUTH$|REDIS_URL", variable):
                assert "${" in value, f"{name}: {variable}"


def test_compose_mounts_files_that_are_there(compose: dict[str, Any]) -> None:
    mounts = [volume for service in compose["services"].values() for volume in service.get("volumes", [])]
    files = [COMPOSE / source for source, *_ in (mount.split(":") for mount in mounts) if source.startswith(".")]
    assert len(files) == 5
    assert [str(path) for path in files if not path.exists()] == []
    named = {source for source, *_ in (mount.split(":") for mount in mounts) if not source.startswith(".")}
    assert named == compose["volumes"].keys()


def test_compose_and_prometheus_agree_on_the_port_of_the_driver() -> None:
    (scrape,) = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": ["head:9464"]}]
    assert (scrape["metrics_path"], scrape["honor_labels"]) == ("/metrics/all", True)
    assert "--metrics-host 0.0.0.0 --metrics-port 9464" in (COMPOSE / "compose.yaml").read_text()


def test_gpus_go_to_services_that_compose_has(compose: dict[str, Any]) -> None:
    gpus = yaml.safe_load((COMPOSE / "compose.gpu.yaml").read_text())["services"]
    ids = [service["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] for service in gpus.values()]
    assert gpus.keys() <= compose["services"].keys()
    assert ids == [["0"], ["1"]], "a device of its own for each"


def test_the_image_has_every_package_the_tested_versions_and_no_root() -> None:
    lines = (ROOT / "deploy" / "Containerfile").read_text().splitlines()
    packages = {"src", *(link.name for link in (ROOT / "src" / "drover").iterdir() if link.is_symlink())}
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    assert packages <= copied
    assert all((ROOT / name).exists() for name in copied)
    assert any("--constraint constraints.txt" in line for line in lines)
    assert [line for line in lines if line.startswith(("USER", "FROM"))] == ["FROM python:3.11-slim", "USER drover"]
    assert not any(re.search("PASSWORD|TOKEN|SECRET", line) for line in lines)


def test_one_image_and_one_version_of_ray_everywhere(compose: dict[str, Any]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    manifests = [COMPOSE / "compose.yaml", *(ROOT / "deploy" / "kuberay").glob("*.yaml")]
    images = {image for path in manifests for image in re.findall(r"image: (drover:\S+)", path.read_text())}
    assert images == {f"drover:{version}"}
    (ray,) = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    for name in ("raycluster.yaml", "rayjob.yaml"):
        assert f'rayVersion: "{ray}"' in (ROOT / "deploy" / "kuberay" / name).read_text()


@pytest.mark.service
def test_redis_as_deployed_wants_a_password_evicts_nothing_and_outlives_a_kill(
    compose: dict[str, Any], tmp_path: Path
) -> None:
    stateful = next(
        d
        for d in yaml.safe_load_all((ROOT / "deploy" / "kuberay" / "redis.yaml").read_text())
        if d["kind"] == "StatefulSet"
    )
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    command = container["command"]
    assert [word.replace("$$", "$") for word in compose["services"]["redis"]["entrypoint"]] == command
    port, password = free_port(), "correct-horse"
    url = f"redis://:{password}@127.0.0.1:{port}"
    with deployed(command, tmp_path, port, password) as server:
        with connect(url) as client:
            facts = client.info()
            assert (facts["maxmemory"], facts["maxmemory_policy"]) == (6 << 30, "noeviction")
            client.set("kept", "yes")
            time.sleep(1.1)  # appendfsync everysec
        with pytest.raises(TransportError, match="wants a password"):
            connect(f"redis://127.0.0.1:{port}")
        assert password not in " ".join(Path(f"/proc/{server.pid}/cmdline").read_text().split("\0"))
        server.send_signal(signal.SIGKILL)
        server.wait()
    with deployed(command, tmp_path, port, password) as server, connect(url) as client:
        assert client.get("kept") == b"yes"
        server.send_signal(signal.SIGTERM)  # as Kubernetes and compose stop it: the server itself must hear it
        assert server.wait(PATIENCE_S) == 0


@contextmanager
def deployed(command: list[str], folder: Path, port: int, password: str) -> Iterator[subprocess.Popen[bytes]]:
    """The manifest's own command, its two places moved into ``folder``, on loopback."""
    (folder / "data").mkdir(exist_ok=True)
    config = (ROOT / "deploy" / "kuberay" / "redis.conf").read_text().replace("dir /data", f"dir {folder}/data")
    (folder / "redis.conf").write_text(f"{config}bind 127.0.0.1\nport {port}\n")
    moved = [word.replace("/etc/redis/redis.conf", str(folder / "redis.conf")) for word in command]
    path = f"{Path(find_server()).parent}{os.pathsep}{os.environ['PATH']}"
    server = subprocess.Popen(
        moved, env={"PATH": path, "REDISCLI_AUTH": password}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        url, gives_up_s = f"redis://:{password}@127.0.0.1:{port}", time.monotonic() + PATIENCE_S
        while True:
            try:
                connect(url).close()
                break
            except TransportError:
                assert server.poll() is None, server.communicate()[0].decode()
                assert time.monotonic() < gives_up_s
                time.sleep(0.1)
        yield server
    finally:
        server.kill()
        server.wait()
