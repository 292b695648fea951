"""Whoever asks a run to stop loses nothing: a checkpoint is there, and the resumed run equals the undisturbed one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.end_to_end.service import ALL_TRAINED, SLOW_TOY, UPDATES, Train, account, survivors

pytestmark = pytest.mark.service


def test_ctrl_c_stops_a_run_in_order_and_what_goes_on_learns_the_same_bits(
    tmp_path: Path, shared: dict[str, str], reference: dict[str, torch.Tensor]
) -> None:
    with Train(SLOW_TOY, runs_dir=tmp_path) as run:
        run.await_update(4)
        run.look()
        # A terminal sends Ctrl-C to the whole group: what the command started must leave the stopping to the command.
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.end() == 130, run.out + run.err
        assert survivors(run.family) == {}
    assert f"--resume {run.folder.path.name}" in run.out
    assert "Traceback" not in run.err
    assert run.summary["ended"] == "stopped"
    done = run.summary["updates"]
    assert 4 <= done < UPDATES
    assert max((run.folder.path / "checkpoints").glob("update-*")).name == f"update-{done:06d}"

    with Train(SLOW_TOY, "--resume", "run", runs_dir=tmp_path, env=shared) as run:
        summary = run.finish()
    assert account(summary) == ALL_TRAINED
    assert summary["updates"] == UPDATES
    numbers = [int(report.scalars["update"]) for report in run.updates()]
    assert numbers == list(range(1, UPDATES + 1)), "an update was lost or done twice"
    assert torch.equal(run.weights["b"], reference["b"])
