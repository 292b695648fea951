"""The state of a run follows from its folder: from the lock of its process, its reports and its summary."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from drover.deploy.run_folder.results import LOCK, RunFolder
from drover.deploy.run_folder.state import FRESH_S, RunState, run_state
from tests.deploy.made_up_run import report, run

PROGRAM = """
import sys
from pathlib import Path
from drover.deploy.run_folder.results import RunFolder
folder = RunFolder.create("run", Path(sys.argv[1]))
print("runs", flush=True)
sys.stdin.read()
"""


def state(folder: RunFolder, *, answers: bool = False) -> str:
    return run_state(folder, lambda: answers).name


def test_a_run_is_starting_then_running_and_lost_once_its_process_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "runs\n"
    folder = RunFolder(tmp_path / "run")
    assert run_state(folder, lambda: False) == RunState("starting", quiet_s=None)
    folder.append(report("phase", 0.0, "starting Ray"))
    assert state(folder) == "starting"
    for each in run(3, 50):
        folder.append(each)
    assert state(folder) == "running"
    os.kill(other.pid, signal.SIGKILL)
    other.communicate()
    assert state(folder) == "lost"
    assert state(folder, answers=True) == "lost", "of this host the lock says it for sure"


def test_a_summary_says_how_a_run_ended(tmp_path: Path) -> None:
    folder = RunFolder.create("run", tmp_path)
    for ended in ("finished", "stopped"):
        folder.write_summary({"ended": ended})
        assert run_state(folder, lambda: False) == RunState(ended)
    folder.write_summary({"ended": "failed", "reason": "no room"})
    assert run_state(folder, lambda: False) == RunState("failed", "no room")


@pytest.mark.parametrize(
    ("answers", "age_s", "name"), [(True, 9 * FRESH_S, "running"), (False, 0, "running"), (False, 9 * FRESH_S, "lost")]
)
def test_of_another_host_the_driver_or_a_fresh_report_says_that_it_runs(
    tmp_path: Path, answers: bool, age_s: float, name: str
) -> None:
    folder = RunFolder.create("run", tmp_path)
    for each in run(3, 50):
        folder.append(each)
    folder.release()
    (folder.path / LOCK).write_text("process 17 on some-other-host")
    told_s = folder.metrics.stat().st_mtime - age_s
    os.utime(folder.metrics, (told_s, told_s))
    assert state(folder, answers=answers) == name


def test_to_look_at_a_run_does_not_free_its_lock(tmp_path: Path) -> None:
    folder = RunFolder.create("run", tmp_path)
    assert [state(folder), state(folder)] == ["starting", "starting"]
    folder.release()
    assert state(folder) == "lost"


@pytest.mark.parametrize("begun", [False, True])
def test_the_name_of_a_failed_run_is_free_again_unless_it_had_begun(tmp_path: Path, begun: bool) -> None:
    folder = RunFolder.create("run", tmp_path)
    folder.append(report("update" if begun else "phase", 1.0, update=1))
    folder.write_summary({"ended": "failed", "reason": "no room"})
    (folder.path / "ray_train").mkdir()
    folder.release()
    if begun:
        with pytest.raises(ValueError, match="holds a failed run; pass --resume run"):
            RunFolder.create("run", tmp_path)
        return
    again = RunFolder.create("run", tmp_path)
    assert sorted(path.name for path in again.path.iterdir()) == [LOCK, "checkpoints"]
