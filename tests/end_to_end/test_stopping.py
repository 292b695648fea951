"""A run that is asked to stop loses nothing: a checkpoint is there, and the run goes on from it to its end."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import termios
from pathlib import Path
from threading import Thread

import pytest
import torch

from drover.deploy.run_folder.results import RunFolder
from tests.end_to_end.service import (
    ALL_TRAINED,
    DROVER,
    SLOW_TOY,
    UPDATES,
    Train,
    account,
    clean_environment,
    survivors,
)

pytestmark = pytest.mark.service


class OnTerminal(Train):
    """A run with the live view on a terminal of its own, which `hang_up` closes."""

    def __init__(self, recipe: str, *arguments: str, runs_dir: Path) -> None:
        self.folder, self.family = RunFolder(runs_dir / "run"), set()
        self._out = self._err = runs_dir / "said"
        self._out.touch()
        self._terminal, end = os.openpty()
        command = [DROVER, "train", recipe, *arguments, "--runs-dir", str(runs_dir)]
        self.process = subprocess.Popen(
            command, stdin=end, stdout=end, stderr=end, env=clean_environment(), start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(end)
        Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while self.process.poll() is None:
            try:
                said = os.read(self._terminal, 1 << 16)
            except OSError:
                return
            with self._out.open("ab") as kept:
                kept.write(said)

    def hang_up(self) -> None:
        """Send SIGHUP to the whole process group, as the shell does, and close the terminal: writing to it fails from then on."""
        os.killpg(self.process.pid, signal.SIGHUP)
        os.close(self._terminal)


def test_a_run_stopped_by_ctrl_c_and_by_its_terminal_that_closes_goes_on_to_the_end(
    tmp_path: Path, shared: dict[str, str], reference: dict[str, torch.Tensor]
) -> None:
    """The run has two learner ranks until Ctrl-C, then one, which adds up in another order: weights differ by rounding."""
    with Train(SLOW_TOY, "--learner-ranks", "2", runs_dir=tmp_path) as run:
        run.await_update(4)
        run.look()
        # A terminal sends Ctrl-C to the whole group: processes that the command started must leave the stopping to it.
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.end() == 130, run.out + run.err
        assert survivors(run.family) == {}
    assert f"--resume {run.folder.path.name}" in run.out
    assert "Traceback" not in run.err
    done = stopped(run, ranks=2)
    assert 4 <= done < UPDATES

    with OnTerminal(SLOW_TOY, "--resume", "run", runs_dir=tmp_path) as run:
        run.await_update(done + 2)
        run.look()
        run.hang_up()
        assert run.end() == 130, run.out
        assert survivors(run.family) == {}
    assert done + 2 <= stopped(run, ranks=1) < UPDATES

    with Train(SLOW_TOY, "--resume", "run", runs_dir=tmp_path, env=shared) as run:
        summary = run.finish()
    assert account(summary) == ALL_TRAINED
    numbers = [int(report.scalars["update"]) for report in run.updates()]
    assert numbers == list(range(1, UPDATES + 1)), "an update was lost or done twice"
    assert torch.allclose(run.weights["b"], reference["b"], atol=1e-4)


def stopped(run: Train, *, ranks: int) -> int:
    """The updates of a run that was stopped in order, which are in a checkpoint with a shard of each rank."""
    assert run.summary["ended"] == "stopped"
    done: int = run.summary["updates"]
    newest = max((run.folder.path / "checkpoints").glob("update-*"))
    assert newest.name == f"update-{done:06d}"
    assert len(list(newest.glob("rank-*.safetensors"))) == ranks
    return done
