"""Whoever asks a run to stop loses nothing: a checkpoint is there, and the resumed run equals the undisturbed one."""

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
from tests.end_to_end.service import DROVER, SLOW_TOY, Train, account, clean_environment, survivors

pytestmark = pytest.mark.service


def test_ctrl_c_stops_a_run_in_order_and_what_goes_on_learns_the_same_bits(
    tmp_path: Path, reference: dict[str, torch.Tensor]
) -> None:
    with Train(SLOW_TOY, runs_dir=tmp_path) as run:
        run.await_update(8)
        run.look()
        # A terminal sends Ctrl-C to the whole group: what the command started must leave the stopping to the command.
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.end() == 130, run.out + run.err
        assert survivors(run.family) == {}
    assert f"--resume {run.folder.path.name}" in run.out
    assert "Traceback" not in run.err
    assert run.summary["ended"] == "stopped"
    done = run.summary["updates"]
    assert 8 <= done < 40
    assert max((run.folder.path / "checkpoints").glob("update-*")).name == f"update-{done:06d}"

    with Train(SLOW_TOY, "--resume", "run", runs_dir=tmp_path) as run:
        summary = run.finish()
    assert account(summary)["trained"] == 40 * 4
    assert summary["updates"] == 40
    numbers = [int(report.scalars["update"]) for report in run.updates()]
    assert numbers == list(range(1, 41)), "an update was lost or done twice"
    assert torch.equal(run.weights["b"], reference["b"])


class OnTerminal(Train):
    """A run with the live view on a terminal of its own, which `hang_up` closes."""

    def __init__(self, recipe: str, *, runs_dir: Path) -> None:
        self.folder, self.family = RunFolder(runs_dir / "run"), set()
        self._out = self._err = runs_dir / "said"
        self._out.touch()
        self._terminal, end = os.openpty()
        command = [DROVER, "train", recipe, "--runs-dir", str(runs_dir), "--run-name", "run"]
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
        """The shell tells the whole group, the kernel the leader of the session; then nothing can be written any more."""
        os.killpg(self.process.pid, signal.SIGHUP)
        os.close(self._terminal)


def test_a_terminal_that_closes_stops_a_run_in_order(tmp_path: Path) -> None:
    with OnTerminal(SLOW_TOY, runs_dir=tmp_path) as run:
        run.await_update(3)
        run.look()
        run.hang_up()
        assert run.end() == 130, run.out
        assert survivors(run.family) == {}
    assert run.summary["ended"] == "stopped"
    done = run.summary["updates"]
    assert 3 <= done < 40
    assert max((run.folder.path / "checkpoints").glob("update-*")).name == f"update-{done:06d}"
