"""A run joins a Ray or starts its own, and says in one sentence why it gets none."""

from __future__ import annotations

import tempfile

import pytest

from drover.common.errors import ConfigError
from drover.deploy.cluster.ray_session import check_answers, cluster_address, not_started, refusal


@pytest.mark.parametrize(
    ("said", "address"),
    [
        ("", ""),
        ("local", ""),
        (" ", ""),
        ("auto", "auto"),
        ("10.0.0.7:6379", "10.0.0.7:6379"),
        ("head.ray.svc:6379\n", "head.ray.svc:6379"),
        ("[fd00::7]:6379", "[fd00::7]:6379"),
    ],
)
def test_an_address_of_a_head_or_none_is_taken(monkeypatch: pytest.MonkeyPatch, said: str, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", said)
    assert cluster_address() == address
    monkeypatch.delenv("RAY_ADDRESS")
    assert cluster_address() == ""


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("http://127.0.0.1:8265", "submit the run there with `ray job submit"),
        ("https://ray.example", "submit the run there with `ray job submit"),
        ("ray://127.0.0.1:10001", "start the run on a node of the cluster"),
        ("localhost", "write HOST:PORT"),
        ("nonsense:port", "write HOST:PORT"),
        ("127.0.0.1:0", "write HOST:PORT"),
        ("127.0.0.1:70000", "write HOST:PORT"),
        ("fd00::7:6379", "write HOST:PORT"),
        (":6379", "write HOST:PORT"),
        ("user@host:6379", "write HOST:PORT"),
        ("10.0.0.7:6379,10.0.0.8:6379", "write HOST:PORT"),
    ],
)
def test_any_other_address_is_refused_by_name_with_the_wanted_form(
    monkeypatch: pytest.MonkeyPatch, said: str, remedy: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", said)
    with pytest.raises(ConfigError, match="RAY_ADDRESS is ") as caught:
        cluster_address()
    assert repr(said) in str(caught.value) and remedy in str(caught.value)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "no.such.host.invalid:6379"])
def test_a_head_that_is_not_there_is_named(address: str) -> None:
    with pytest.raises(ConfigError, match="no Ray answers at .*; correct RAY_ADDRESS, or unset it"):
        check_answers(address)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "ray.exceptions.AuthenticationError: InvalidAuthToken",
            "checks tokens and refuses ours; set RAY_AUTH_MODE=token",
        ),
        (
            "RuntimeError: Version mismatch: The cluster was started",
            "another version of Ray or Python; use the same image",
        ),
        (
            "Failed to get cluster ID: Timed out while waiting for GCS",
            "nothing at h:1 answers as a Ray head does; write",
        ),
        ("RpcError: Received http2 header with status: 404", "nothing at h:1 answers as a Ray head does; write"),
        (
            "ConnectionError: Could not find any running Ray instance.",
            "cannot join the Ray at h:1: .*running Ray",
        ),
    ],
)
def test_a_refusal_of_ray_becomes_a_fault_and_its_remedy(words: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        raise refusal("h:1", f"File '/home/me/tokens/x.py'\n{words}\n")


def test_a_ray_that_cannot_start_says_where_and_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    long = "/scratch/" + "slurm_jobdir_of_a_user_" * 4
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", long)
    error = not_started(
        OSError(f"AF_UNIX path length cannot exceed 107 bytes: {long}/ray/session/sockets/plasma_store")
    )
    assert f"{long!r} is too long" in str(error) and "; set RAY_TMPDIR to a short folder" in str(error)
    monkeypatch.setenv("RAY_TMPDIR", "/nowhere")
    error = not_started(FileNotFoundError(2, "No such file or directory", "/nowhere"))
    assert "Ray cannot start here" in str(error) and "'/nowhere'" in str(error)
