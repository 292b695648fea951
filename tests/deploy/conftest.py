"""The command in this process, and the tiny pipeline and the single thread of the policies' tests."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drover.common.stopping import SIGNALS
from drover.deploy import cli
from tests.common.policies.conftest import one_thread, tiny_folder

__all__ = ["one_thread", "tiny_folder"]

Drover = Callable[..., tuple[int, str, str]]


@pytest.fixture
def drover(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Drover]:
    """Run the command in ``tmp_path``; (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["drover", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        code = left.value.code
        return (0 if code is None else int(code)), out, err

    yield call
    for number, handler in before.items():  # the command sets its own
        signal.signal(number, handler)
