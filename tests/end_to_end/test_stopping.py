"""Whoever asks a run to stop loses nothing: a checkpoint is there, and the resumed run equals the undisturbed one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.end_to_end.service import SLOW_TOY, Train, account, survivors

pytestmark = pytest.mark.service


def test_a_run_stopped_twice_goes_on_where_it_stopped_and_learns_the_same_bits(
    tmp_path: Path, reference: dict[str, torch.Tensor]
) -> None:
    with Train(SLOW_TOY, runs_dir=tmp_path) as run:
        run.await_update(8)
        first = stop(run, lambda: run.process.send_signal(signal.SIGTERM))
        assert survivors(run.family) == {}
    assert 8 <= first < 40
    assert f"--resume {run.folder.path.name}" in run.out

    with Train(SLOW_TOY, "--resume", "run", runs_dir=tmp_path) as run:
        run.await_update(first + 4)
        # A terminal sends Ctrl-C to the whole group: what the command started must leave the stopping to the command.
        second = stop(run, lambda: os.killpg(run.process.pid, signal.SIGINT))
        assert survivors(run.family) == {}
    assert first + 4 <= second < 40

    with Train(SLOW_TOY, "--resume", "run", runs_dir=tmp_path) as run:
        summary = run.finish()
    assert account(summary)["trained"] == 40 * 4
    assert summary["updates"] == 40
    numbers = [int(report.scalars["update"]) for report in run.updates()]
    assert numbers == list(range(1, 41)), "an update was lost or done twice"
    assert torch.equal(run.weights["b"], reference["b"])


def stop(run: Train, ask: object) -> int:
    """Ask the run to stop and check that it does so in order; the updates it had done."""
    run.look()
    ask()  # type: ignore[operator]
    code = run.end()
    assert code == 130, run.out + run.err
    assert "Traceback" not in run.err
    summary = run.summary
    assert summary["ended"] == "stopped"
    newest = max((run.folder.path / "checkpoints").glob("update-*"))
    assert newest.name == f"update-{summary['updates']:06d}"
    return int(summary["updates"])
