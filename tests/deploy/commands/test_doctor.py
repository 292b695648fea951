"""`drover doctor` on this machine and on broken ones: its findings, its advice, and the secrets that it does not print."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from drover.common.errors import ConfigError
from drover.common.transport.connection import connect
from drover.common.transport.embedded import EmbeddedRedis
from drover.deploy.cluster import placing
from drover.deploy.cluster.jobs import check_job
from drover.deploy.commands.checks import machine, redis_server
from drover.deploy.commands.checks import recipe as recipes
from drover.deploy.commands.checks.finding import Finding, guarded
from drover.deploy.commands.checks.ray_cluster import ray_cluster
from drover.deploy.commands.doctor import DoctorOptions, examine, report, run
from drover.deploy.config import RunConfig
from drover.reward_servers.rewards.toy_point import ToyPoint
from tests.deploy.conftest import Drover


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests join no Ray and no Redis, even if the shell's environment names some."""
    for name in ("RAY_ADDRESS", "DROVER_REDIS_URL", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis() as started:
        yield started


def of(findings: list[Finding], check: str, state: str = "problem") -> Finding:
    (found,) = (one for one in findings if (one.check, one.state) == (check, state))
    return found


@pytest.mark.service
def test_a_machine_that_can_train_the_bundled_model_has_no_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = DoctorOptions(recipe=("shapes_ddpo", "--actors", "3"), runs_dir=tmp_path / "runs", json=True)
    assert run(options) == 0
    found = {one["check"]: one for one in json.loads(capsys.readouterr().out)}
    assert set(found) >= {"python", "device", "disk", "ports", "redis", "ray", "recipe"}
    assert found["recipe"]["found"].startswith("shapes_ddpo: 3 actors, 1 server of each reward, 2 learner ranks")
    assert not (tmp_path / "runs").exists(), "it only looks"


@pytest.mark.service
def test_a_problem_is_printed_with_its_remedy_and_is_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = tmp_path / "no-such-model"
    assert run(DoctorOptions(recipe=("shapes_ddpo", "--checkpoint", str(lost)), runs_dir=tmp_path)) == 1
    said = capsys.readouterr().out
    assert "PROBLEM recipe:" in said
    assert str(lost) in said
    assert said.splitlines()[-1] == "1 problem"


def test_a_misspelt_recipe_and_a_misspelt_option_are_named() -> None:
    found = examine_recipe("shapes_dpo")
    assert "shapes_dpo" in found.found
    assert found.fix == "did you mean shapes_ddpo?"
    found = examine_recipe("toy_ddpo", "--actors", "many")
    assert "many" in found.found
    assert found.fix.startswith("see drover train toy_ddpo --help")


def test_the_message_on_a_misspelt_option_is_whole_and_without_a_frame() -> None:
    found = examine_recipe("shapes_ddpo", "--actorz", "3", "--iterationz", "4")
    lines = found.found.splitlines()
    assert lines[0] == "shapes_ddpo refuses these options:"
    assert "Unrecognized options: --actorz, 3, --iterationz, 4" in lines
    assert "--actors INT" in lines
    assert "--iterations INT" in lines
    assert not any(set(line) & set("│╭╮╰╯─-") == set(line) for line in lines)
    last, fix, _ = report([found]).splitlines()[-3:]
    assert (last[:8], fix[:11]) == (" " * 8, " " * 8 + "-> ")


@pytest.mark.parametrize(
    "words",
    [
        ("shapes_ddpo", "--runs-dir", "here", "--"),
        ("--runs-dir", "here", "shapes_ddpo", "--"),
        ("shapes_ddpo", "--"),
        ("--runs-dir", "here", "--", "shapes_ddpo"),
    ],
)
def test_the_options_of_the_recipe_follow_two_dashes_wherever_those_stand(
    words: tuple[str, ...], drover: Drover, tmp_path: Path
) -> None:
    code, out, err = drover("doctor", "--json", *words, "--actors", "1", "--learner-ranks", "1")
    assert code == 0, out + err
    found = {one["check"]: one["found"] for one in json.loads(out)}
    assert found["recipe"] == "shapes_ddpo: 1 actor, 1 server of each reward, 1 learner rank; its model is there"
    assert found["disk"].endswith(" here" if "here" in words else " runs")


def test_a_run_that_this_machine_cannot_hold_is_a_problem_in_the_words_of_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    config = recipes.build(("toy_ddpo", "--actors", "2"))
    assert isinstance(config, RunConfig)
    greedy = replace(config, pools=replace(config.pools, reward_servers=4, reward_gpus=0.25))
    (found,) = guarded("ray", lambda: ray_cluster(Path("runs"), greedy))
    assert (found.state, found.found) == ("problem", "this run asks for 1 GPU (4 point x 0.25), this machine has 0")
    assert found.fix == "lower --reward-gpus, --reward-servers, --actors or --learner-ranks, or use a cluster"
    with pytest.raises(ConfigError, match=re.escape(f"{found.found}; {found.fix}")):
        placing.plan(greedy, placing.this_machine(greedy), alone=True)


def test_many_more_processes_than_cores_are_advised_against() -> None:
    cores = os.cpu_count() or 1
    few, many = (recipes.build(("toy_ddpo", "--actors", str(actors))) for actors in (1, 8 * cores))
    assert isinstance(few, RunConfig)
    assert isinstance(many, RunConfig)
    assert [one.state for one in ray_cluster(Path("runs"), few)] == ["ok"]
    advice = of(ray_cluster(Path("runs"), many), "ray", "advice")
    assert advice.found == f"{8 * cores + 2} processes would share {cores} CPU cores, and each actor loads the model"
    assert advice.fix == "lower --actors"


def examine_recipe(*words: str) -> Finding:
    from drover.deploy.commands.doctor import _build

    config, (found,) = _build(words)
    assert config is None
    return found


def test_a_rewards_own_packages_are_looked_up_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # pip works, and its index is empty
    config = recipes.build(("toy_ddpo",))
    assert isinstance(config, RunConfig)
    config = replace(config, rewards=(Elsewhere(),))
    (left,) = recipes.environments(config, ask=False)
    assert (left.state, left.found) == (
        "ok",
        "point (drover-made-up): built at the start; --environments asks pip for it now",
    )
    (asked,) = recipes.environments(config, ask=True)
    assert asked.state == "problem"
    assert "No matching distribution found for drover-made-up" in asked.found


@dataclass(frozen=True)
class Elsewhere(ToyPoint):
    """The toy's reward with the need of a package that no index has."""

    packages: tuple[str, ...] = ("drover-made-up",)


@pytest.mark.service
def test_redis_without_a_log_is_advice_and_one_that_evicts_is_a_problem(
    server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DROVER_REDIS_URL", server.url)
    found = redis_server.redis_server()
    assert of(found, "redis", "ok").found.endswith("of 1.07")
    assert "appendonly yes" in of(found, "redis", "advice").fix
    with connect(server.url) as client:
        client.config_set("maxmemory-policy", "volatile-lru")
        try:
            assert of(redis_server.redis_server(), "redis").fix == "set maxmemory-policy noeviction"
        finally:
            client.config_set("maxmemory-policy", "noeviction")


@pytest.mark.service
def test_a_wrong_password_and_a_closed_port_are_told_without_the_password(
    server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host = server.url.rpartition("@")[2]
    for url, remedy in (
        (f"redis://:hunter2@{host}", "check the URL"),
        ("redis://:hunter2@127.0.0.1:1", "check that it"),
    ):
        monkeypatch.setenv("DROVER_REDIS_URL", url)
        found = examine(DoctorOptions(runs_dir=tmp_path))
        assert of(found, "redis").fix.startswith(remedy)
        assert "hunter2" not in report(found)


def test_a_redis_beyond_this_machine_is_better_off_with_tls() -> None:
    (found,) = redis_server.tls("redis://:secret@far:6379")
    assert found.state == "advice" and found.fix.startswith("use rediss://")
    assert redis_server.tls("rediss://:secret@far:6379") == []
    assert redis_server.tls("redis://localhost:6379") == redis_server.tls("unix:///run/redis.sock") == []


def test_no_ray_at_the_address_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    found = examine(DoctorOptions(runs_dir=tmp_path))
    assert of(found, "ray").found.startswith("no Ray answers at 127.0.0.1:1")
    assert "DROVER_REDIS_URL is unset" in of(found, "redis", "advice").found


def test_runs_that_cannot_be_written_are_found_before_the_run() -> None:
    found = of(machine.disk(Path("/proc/runs")), "disk")
    assert found.found.startswith("cannot write in /proc")
    assert "--runs-dir" in found.fix


def test_packages_that_do_not_fit_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "drover_rl-9.dist-info"
    installed.mkdir()
    needs = "Requires-Dist: numpy>=99\nRequires-Dist: no-such-package\nRequires-Dist: absent; extra == 'dev'\n"
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: drover-rl\nVersion: 9\n{needs}")
    monkeypatch.syspath_prepend(str(tmp_path))
    (found,) = machine.python()
    assert found.state == "problem"
    assert "wanted >=99; no-such-package is missing" in found.found
    assert "absent" not in found.found


def test_a_submitted_job_may_not_lose_its_results_nor_be_alone_with_its_redis() -> None:
    job = {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}", "DROVER_REDIS_URL": "redis://:p@redis:6379"}
    copy = Path("/scratch/session/runtime_resources/working_dir_files/_ray_pkg_1/runs")
    check_job(copy, {})
    check_job(Path("/runs"), job)
    with pytest.raises(ValueError, match="would be deleted .* pass --runs-dir"):
        check_job(copy, job)
    with pytest.raises(ValueError, match="DROVER_REDIS_URL is not set where jobs run"):
        check_job(Path("/runs"), {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"})
