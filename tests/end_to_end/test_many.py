"""Runs beside each other on one machine."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from tests.end_to_end.own_project import write_project
from tests.end_to_end.service import ALL_TRAINED, SLOW_TOY, Train, account, assert_same, command_lines

pytestmark = pytest.mark.service


def test_two_runs_of_one_name_one_of_a_project_elsewhere_share_a_redis_and_a_ray_and_never_meet(
    tmp_path: Path, shared: dict[str, str], reference: dict[str, torch.Tensor]
) -> None:
    """The runs differ in size and lag: a group in the wrong run would show in a ledger or in the weights of the on-policy run.

    The on-policy run's recipe is in a project whose folders have the names of drover's packages: roles import both.
    """
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    write_project(tmp_path / "project")
    with (
        Train(f"{tmp_path / 'project' / 'mine.py'}:mine", runs_dir=here, env=shared) as one,
        Train(SLOW_TOY, "--iterations", "15", "--groups", "3", "--max-lag", "2", runs_dir=there, env=shared) as other,
    ):
        one.await_update(1)
        other.await_update(1)
        password = shared["DROVER_REDIS_URL"].split(":")[2].split("@")[0]
        told = [line for line in command_lines(set(psutil.process_iter())).values() if password in line]
        assert told == [], "a command line shows the password of Redis"
        first, second = one.finish(), other.finish()
    assert account(first) == ALL_TRAINED
    assert first["max_lag_seen"] == 0
    assert account(second)["trained"] == 15 * 3
    assert second["max_lag_seen"] <= 2
    assert_same(one.weights, reference)
    assert not torch.equal(other.weights["b"], reference["b"])
