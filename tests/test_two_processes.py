"""`make test` is ``python -m tests``: the results of its two processes are shown whole and give one exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WELL, ILL, NO_TESTS = 0, 1, 5  # pytest's exit codes


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite of three tests, one of them of services; one of the others fails."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "tests" / "end_to_end").mkdir(parents=True)
    (folder / "tests" / "end_to_end" / "test_services.py").write_text("def test_a_service(): pass\n")
    (folder / "tests" / "test_others.py").write_text("def test_sums(): pass\ndef test_wrong(): assert 1 + 1 == 3\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "counts"),
    [
        ((), ILL, ["1 passed", "1 failed, 1 passed"]),
        (("-k", "a_service"), WELL, ["1 passed", "2 deselected"]),
        (("-k", "nothing"), NO_TESTS, ["1 deselected", "2 deselected"]),
        (("tests/test_others.py::test_sums",), WELL, ["1 passed"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_both_processes_are_asked_shown_and_believed(
    suite: Path, arguments: tuple[str, ...], code: int, counts: list[str]
) -> None:
    command = [sys.executable, "-m", "tests", *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # importing plugins takes long
    done = subprocess.run(command, cwd=suite, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    summaries = [line.rpartition(" in ")[0] for line in done.stdout.splitlines() if line.endswith("s")]
    assert [summary for summary in summaries if summary] == counts
