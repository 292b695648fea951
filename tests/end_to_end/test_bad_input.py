"""A run that cannot work ends soon, with one clear error and no half-written files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from drover.common.transport.embedded import EmbeddedRedis
from drover.deploy.run_folder.results import RunFolder
from drover.worlds.shapes import PIPELINE
from tests.end_to_end.service import RECIPES, Train, drover

pytestmark = pytest.mark.service


def refused(runs_dir: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command that must fail with a message and no traceback. A misuse leaves no run folder, a failure its reason."""
    result = drover("train", *arguments, "--runs-dir", str(runs_dir), "--run-name", "run", "--plain", env=env)
    assert result.returncode in (1, 2), result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    left = RunFolder(runs_dir / "run").read_summary()
    if result.returncode == 2:
        assert not (runs_dir / "run").exists(), result.stdout + result.stderr
    else:
        assert left is not None and f"drover: {left['reason']}" == complaint(result)
    return result


def complaint(result: subprocess.CompletedProcess[str]) -> str:
    """The one line of drover's own in the error output."""
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("drover: ")]
    return line


def test_a_redis_that_is_not_there_is_named_with_the_remedy(tmp_path: Path) -> None:
    result = refused(tmp_path, "toy_ddpo", env={"DROVER_REDIS_URL": "redis://:hush@127.0.0.1:1/0"})
    assert result.returncode == 1
    assert "127.0.0.1:1" in complaint(result)
    assert "cannot be reached; check that it runs" in complaint(result)
    assert "hush" not in result.stderr + result.stdout


def test_a_wrong_redis_password_is_said_and_not_shown(tmp_path: Path) -> None:
    with EmbeddedRedis() as server:
        url = f"redis://:hush@{server.url.split('@')[1]}"
        result = refused(tmp_path, "toy_ddpo", env={"DROVER_REDIS_URL": url})
    assert result.returncode == 1
    assert "refuses the user or password" in complaint(result)
    assert "hush" not in result.stderr + result.stdout


@pytest.mark.parametrize(
    ("scheme", "words"),
    [("redis", "cannot be reached; check that it runs, its address and port"), ("rediss", "does not agree on TLS")],
)
def test_a_port_that_something_else_is_using_is_named_with_the_remedy(tmp_path: Path, scheme: str, words: str) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        Thread(target=other.serve_forever, daemon=True).start()
        url = f"{scheme}://:hush@127.0.0.1:{other.server_port}/0"
        result = refused(tmp_path, "toy_ddpo", env={"DROVER_REDIS_URL": url})
        other.shutdown()
    assert result.returncode == 1
    assert words in complaint(result) and f"127.0.0.1:{other.server_port}" in complaint(result)
    assert "hush" not in result.stderr + result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("toy_dpo",), "there is no recipe 'toy_dpo'; did you mean toy_ddpo?"),
        (("toy_ddpo", "--iteration-count", "3"), "iteration-count"),
        (("toy_ddpo", "--groups", "0"), "groups must be at least 1, got 0"),
        (("toy_ddpo", "--max-lag", "-1"), "max_lag must be 0 (strictly on-policy) or more, got -1"),
        (("missing.py:recipe",), "there is no file missing.py"),
        ((f"{RECIPES}:no_such",), "defines no function 'no_such'"),
        (("shapes_ddpo", "--checkpoint", "/nowhere/at/all"), "there is no checkpoint folder '/nowhere/at/all'"),
    ],
)
def test_a_misuse_is_refused_before_anything_starts(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    result = refused(tmp_path, *arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert "starting" not in result.stdout


def test_a_damaged_pipeline_is_refused_before_anything_starts(tmp_path: Path) -> None:
    shutil.copytree(PIPELINE, tmp_path / "pipeline")
    weights = tmp_path / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    result = refused(tmp_path, "shapes_ddpo", "--checkpoint", str(tmp_path / "pipeline"))
    assert result.returncode == 2
    assert f"'{weights}' is damaged" in complaint(result)
    assert "starting" not in result.stdout


def test_an_empty_prompt_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n  \n")
    result = refused(tmp_path, "shapes_ddpo", "--prompt-file", str(tmp_path / "prompts.txt"))
    assert result.returncode == 2
    assert "holds no prompt; write one per line" in complaint(result)


def test_a_name_that_is_taken_is_refused_and_the_run_of_that_name_stays_as_it_is(tmp_path: Path) -> None:
    arguments = ("train", "toy_ddpo", "--runs-dir", str(tmp_path), "--run-name", "run", "--one-process", "--plain")
    assert drover(*arguments, "--iterations", "2").returncode == 0
    files = contents(tmp_path)
    again = drover(*arguments)
    assert again.returncode == 2
    assert "holds a finished run; pass --resume" in complaint(again)
    assert contents(tmp_path) == files


def test_a_ray_too_small_for_the_run_is_said_with_the_numbers(tmp_path: Path, shared: dict[str, str]) -> None:
    result = refused(tmp_path, "toy_ddpo", "--actors", "64", env=shared)
    assert result.returncode == 2
    assert "64 rollout x 1" in complaint(result)
    assert "the cluster has 8; lower --actors" in complaint(result)


def test_a_ray_that_is_not_there_is_named_with_the_remedy(tmp_path: Path) -> None:
    result = refused(tmp_path, "toy_ddpo", env={"RAY_ADDRESS": "127.0.0.1:1"})
    assert result.returncode == 2
    assert "no Ray answers at 127.0.0.1:1" in complaint(result)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001", "localhost"])
def test_an_address_that_is_no_head_is_refused_before_anything_starts(tmp_path: Path, address: str) -> None:
    result = refused(tmp_path, "toy_ddpo", env={"RAY_ADDRESS": address})
    assert result.returncode == 2
    assert f"RAY_ADDRESS is {address!r}" in complaint(result)
    assert "starting" not in result.stdout


def test_a_ray_that_refuses_our_token_is_said_in_the_words_of_doctor(tmp_path: Path, shared: dict[str, str]) -> None:
    result = refused(tmp_path, "toy_ddpo", env={**shared, "RAY_AUTH_TOKEN": "another-token-of-forty-characters-or-so"})
    assert result.returncode == 2
    assert "checks tokens and refuses ours; set RAY_AUTH_MODE=token" in complaint(result)


def test_a_ray_whose_sockets_would_have_too_long_a_path_is_refused_with_the_variable_to_set(tmp_path: Path) -> None:
    long = tmp_path / ("slurm_jobdir_of_a_user_" * 4)
    long.mkdir()
    result = refused(tmp_path, "toy_ddpo", env={"TMPDIR": str(long)})
    assert result.returncode == 2
    assert "too long for Ray's sockets" in complaint(result) and "set RAY_TMPDIR to a short folder" in complaint(result)


def test_a_reward_that_always_raises_ends_the_run_with_its_name_and_reason(
    tmp_path: Path, shared: dict[str, str]
) -> None:
    result = drover(
        *("train", f"{RECIPES}:unscorable_toy", "--runs-dir", str(tmp_path), "--run-name", "run", "--plain"), env=shared
    )
    assert result.returncode == 1, result.stderr
    assert "no sample of the task 'point' had a valid reward" in complaint(result)
    assert "point-0: RuntimeError: the judge is on strike" in complaint(result)
    assert "Traceback" not in result.stderr


def test_a_reward_that_cannot_be_loaded_ends_the_run_in_one_sentence_and_the_rest_is_in_its_log(
    tmp_path: Path, shared: dict[str, str]
) -> None:
    result = drover(
        *("train", f"{RECIPES}:unloadable_toy", "--runs-dir", str(tmp_path), "--run-name", "run", "--plain"), env=shared
    )
    assert result.returncode == 1
    reason = "point-0 failed: the reward point cannot be loaded: FileNotFoundError: no weights at judge.safetensors at "
    assert complaint(result).startswith(f"drover: {reason}")
    assert re.search(r"recipes\.py:\d+$", complaint(result))
    assert "Traceback" not in result.stdout + result.stderr
    assert len(result.stdout.splitlines()) <= 4, result.stdout
    assert "Traceback" in (tmp_path / "run" / "run.log").read_text()
    told = json.loads(drover("status", "run", "--runs-dir", str(tmp_path), "--json").stdout)["run"]
    assert (told["state"], told["updates"]) == ("failed", 0)
    assert told["reason"].startswith(reason)


@pytest.mark.slow
def test_a_reward_that_hangs_is_named_with_its_process_and_log_long_before_the_run_ends(
    tmp_path: Path, shared: dict[str, str]
) -> None:
    with Train(f"{RECIPES}:hanging_toy", runs_dir=tmp_path, env=shared) as run:
        assert run.end() == 1
        (event,) = [text for text in run.events if text.startswith("point-0: one call has taken ")]
        named = re.search(r"taken (\d+) s so far \(its log: (\S+\.err)\); if it hangs, set reward_deadline_s", event)
        assert named is not None, event
        assert 6 <= int(named[1]) < 20
        assert "nothing arrived for 30 s while the learner waits for" in run.err
        assert f"s so far (its log: {named[2]})" in run.err


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
