"""``ray job submit`` on a cluster of marked nodes whose dashboard checks tokens: roles run on their nodes, a stop is orderly.

The submitted project has packages with the same names as drover's: every process imports the right ones.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from drover.deploy.run_folder.results import RunFolder
from tests.end_to_end.own_project import write_project
from tests.end_to_end.ray_nodes import Nodes, ray_nodes
from tests.end_to_end.service import ALL_TRAINED, PATIENCE_S, UPDATES, account, assert_same, drover

pytestmark = [pytest.mark.service, pytest.mark.slow]

MARKS = {"rollout": 4, "reward": 4, "learner": 2}
PLACES = {"driver": "head", "actor-0": "rollout", "point-0": "reward", "learner-0": "learner"}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[Nodes]:
    """A cluster as in deploy/kuberay: the address with the password, and the time for a stop, are in the head's environment."""
    head_env = {"DROVER_REDIS_URL": redis_url, "RAY_JOB_STOP_WAIT_TIME_S": "120"}
    with ray_nodes(tmp_path_factory.mktemp("nodes"), MARKS, cpus=2, head_env=head_env) as started:
        yield started


def test_a_submitted_run_uses_the_marked_nodes_stops_in_order_and_another_job_goes_on(
    nodes: Nodes, tmp_path: Path, redis_url: str, reference: dict[str, torch.Tensor]
) -> None:
    folder = RunFolder(tmp_path / "runs" / "run")
    submit(nodes, tmp_path, "first", "--run-name", "run")
    until(nodes, "first", lambda: len(updates(folder)) >= 4 and roles_of(folder).keys() >= PLACES.keys())
    roles = {name: psutil.Process(pid) for name, pid in roles_of(folder).items()}
    assert {name: node_of(process) for name, process in roles.items()} == PLACES

    nodes.job("stop", "first")
    assert nodes.state("first") == "STOPPED"
    assert "was stopped" in nodes.job("status", "first")
    said = nodes.job("logs", "first")
    assert "stopped early" in said
    assert redis_url not in said
    assert [name for name, process in roles.items() if process.is_running()] == []
    assert 4 <= len(updates(folder)) < UPDATES

    submit(nodes, tmp_path, "second", "--resume", "run")
    until(nodes, "second", lambda: nodes.state("second") == "SUCCEEDED")
    summary = json.loads(folder.summary.read_text())
    assert account(summary) == ALL_TRAINED
    assert updates(folder) == list(range(1, UPDATES + 1)), "an update was lost or done twice"
    assert_same(load_file(folder.path / "toy.safetensors"), reference)


def test_the_dashboard_turns_away_whoever_has_no_token(nodes: Nodes) -> None:
    assert nodes.ask("/api/jobs/", nodes.token)[0] == 200
    assert nodes.ask("/api/jobs/", "guess")[0] in (401, 403)


def test_doctor_joins_the_cluster_asks_every_node_and_needs_the_token(
    nodes: Nodes, tmp_path: Path, redis_url: str
) -> None:
    joined = {**nodes.env, "RAY_ADDRESS": nodes.address, "DROVER_REDIS_URL": redis_url}
    well = drover("doctor", "toy_ddpo", "--runs-dir", str(tmp_path), env=joined)
    assert well.returncode == 0, well.stdout + well.stderr
    assert "4 nodes with 6 CPU, 4 rollout, 4 reward, 2 learner" in well.stdout
    (tmp_path / "token").write_text("guess")
    refused = drover("doctor", env={**joined, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")})
    assert refused.returncode == 1
    assert "checks tokens and refuses ours" in refused.stdout
    assert nodes.token not in well.stdout + refused.stdout + refused.stderr


def submit(nodes: Nodes, tmp_path: Path, job: str, *arguments: str) -> None:
    """Submit a project by ``ray job submit``, then delete it; results go to storage that all nodes share."""
    working_dir = tmp_path / "working_dir"
    write_project(working_dir)
    command = ("drover", "train", "mine.py:mine", "--runs-dir", str(tmp_path / "runs"), *arguments)
    nodes.job("submit", "--no-wait", "--submission-id", job, "--working-dir", str(working_dir), "--", *command)
    shutil.rmtree(working_dir)


def until(nodes: Nodes, job: str, reached: Callable[[], bool]) -> None:
    """Wait until ``reached``. Fails when the job fails first."""
    gives_up_s = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < gives_up_s, nodes.job("logs", job)
        assert nodes.state(job) in ("PENDING", "RUNNING", "SUCCEEDED"), nodes.job("logs", job)
        time.sleep(1.0)


def updates(folder: RunFolder) -> list[int]:
    return [int(report.scalars["update"]) for report in folder.reports() if report.kind == "update"]


def roles_of(folder: RunFolder) -> dict[str, int]:
    """Worker -> pid of the process that listens at the port of its metrics."""
    told = folder.path / "metrics_targets.json"
    groups = json.loads(told.read_text()) if told.exists() else []
    ports = {int(group["targets"][0].rsplit(":", 1)[1]): group["labels"]["worker"] for group in groups}
    listening = [c for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port in ports]
    return {ports[c.laddr.port]: c.pid for c in listening}


def node_of(process: psutil.Process) -> str:
    """The mark of the process's node, read from the resources in the command line of the raylet that started it."""
    (raylet,) = (parent for parent in process.parents() if parent.name() == "raylet")
    told = " ".join(raylet.cmdline())
    return next((mark for mark in MARKS if f"{mark}," in told), "head")
