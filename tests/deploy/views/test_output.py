"""Output whose reader goes away, whose disk is full or whose encoding is poor costs lines, and never a run."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import pytest
from rich.console import Console
from rich.table import Table

from drover.common.stopping import SIGNALS
from drover.deploy import cli
from drover.deploy.run_folder.results import RunFolder
from drover.deploy.views.output import Output, tolerant

Drover = Callable[..., tuple[int, str]]
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


@pytest.fixture
def closed_pipe() -> Iterator[TextIO]:
    """A text stream into a pipe that nobody reads any more."""
    reads, writes = os.pipe()
    os.close(reads)
    stream = os.fdopen(writes, "w")
    yield stream
    with suppress(BrokenPipeError):
        stream.close()


def test_a_reader_that_has_gone_is_no_error_and_no_loss_worth_telling(closed_pipe: TextIO) -> None:
    out = Output(closed_pipe)
    for _ in range(10_000):  # more than any buffer holds
        out.write("update 1/2\n")
        out.flush()
    assert out.loss() == ""


@needs_full
def test_a_full_disk_is_told_once_asked() -> None:
    with FULL.open("w") as stream:
        out = Output(stream)
        out.write("update 1/2\n" * 10_000)
        assert out.loss() == os.strerror(errno.ENOSPC)
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # so that closing it succeeds


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_a_character_that_the_encoding_lacks_becomes_a_question_mark(encoding: str) -> None:
    raw = io.BytesIO()
    out = Output(io.TextIOWrapper(raw, encoding=encoding))
    out.write("reward \u2581\u2588\u2192 0.5 \udcff\n")
    out.flush()
    said = raw.getvalue().decode(encoding)
    assert said.startswith("reward ") and said.endswith(" 0.5 ?\n") and "?" in said.split()[1]


def test_tables_of_rich_can_be_written_anywhere(closed_pipe: TextIO) -> None:
    table = Table("r\u00f4le")
    table.add_row("\u2588\u2588")
    poor = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    for stream in (closed_pipe, poor):
        Console(file=Output(stream)).print(table)


def test_after_the_block_the_streams_are_as_before_and_can_be_flushed(
    closed_pipe: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", closed_pipe)
    with tolerant():
        print("a line")
    assert sys.stdout is closed_pipe
    closed_pipe.flush()  # as Python does at exit, where a failure would become the exit code


def test_a_stream_that_was_closed_before_the_command_began_swallows_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)  # as after `drover ... >&-`
    with tolerant() as out:
        print("a line")
        Console(file=sys.stdout).print("another")
    assert out.loss() == ""


# ------------------------------------------------------------------------------------------------ commands


@pytest.fixture
def drover(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Drover]:
    """Run the command with ``stdout`` as its standard output; (exit code, standard error)."""
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def call(stdout: TextIO, *arguments: str) -> tuple[int, str]:
        with monkeypatch.context() as patched:
            patched.setattr("sys.argv", ["drover", *arguments])
            patched.setattr("sys.stdout", stdout)
            with pytest.raises(SystemExit) as left:
                cli.main()
            stdout.flush()  # as Python does at exit
        return int(left.value.code or 0), capsys.readouterr().err

    yield call
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def full() -> Iterator[TextIO]:
    """A text stream into a file whose disk is full."""
    with FULL.open("w") as stream:
        yield stream


def training(runs_dir: Path, *arguments: str) -> tuple[str, ...]:
    options = (
        "--one-process",
        "--iterations",
        "2",
        "--samples",
        "16",
        "--runs-dir",
        str(runs_dir),
        "--run-name",
        "run",
    )
    return ("train", "toy_ddpo", *options, *arguments)


def ended(runs_dir: Path) -> str:
    return json.loads(RunFolder(runs_dir / "run").summary.read_bytes())["ended"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--plain", "--json"])
def test_a_run_whose_reader_goes_away_trains_to_its_end(
    drover: Drover, closed_pipe: TextIO, tmp_path: Path, how: str
) -> None:
    assert drover(closed_pipe, *training(tmp_path, how)) == (0, "")
    assert ended(tmp_path) == "finished"


@pytest.mark.slow
@needs_full
def test_a_run_whose_output_finds_no_room_trains_to_its_end_and_says_that_lines_are_missing(
    drover: Drover, full: TextIO, tmp_path: Path
) -> None:
    code, err = drover(full, *training(tmp_path, "--plain"))
    assert (code, ended(tmp_path)) == (0, "finished")
    assert err.startswith("drover: not all of the output could be written (No space left on device)")


@pytest.mark.slow
def test_a_run_that_prints_in_ascii_trains_to_its_end_and_status_shows_it(drover: Drover, tmp_path: Path) -> None:
    raw = io.BytesIO()
    poor = io.TextIOWrapper(raw, encoding="ascii")
    assert drover(poor, *training(tmp_path, "--plain")) == (0, "")
    assert drover(poor, "status", "run", "--runs-dir", str(tmp_path)) == (0, "")
    said = raw.getvalue().decode("ascii")
    assert "run: finished; 2 updates" in said and "learner's time" in said


LISTINGS = [["recipes"], ["--help"], ["train"], ["train", "toy_ddpo", "--help"], ["status"], ["status", "--json"]]


@pytest.mark.parametrize("command", LISTINGS, ids=" ".join)
def test_a_listing_whose_reader_goes_away_ends_without_a_word(
    drover: Drover, closed_pipe: TextIO, tmp_path: Path, command: list[str]
) -> None:
    options = ["--runs-dir", str(tmp_path)] if command[0] == "status" else []
    assert drover(closed_pipe, *command, *options) == (2 if command == ["train"] else 0, "")


@needs_full
def test_a_listing_that_finds_no_room_has_failed(drover: Drover, full: TextIO, tmp_path: Path) -> None:
    code, err = drover(full, "status", "--json", "--runs-dir", str(tmp_path))
    assert code == 1
    assert err.startswith("drover: not all of the output could be written (No space left on device)")


@pytest.mark.slow
def test_python_has_nothing_to_add_when_it_exits(closed_pipe: TextIO) -> None:
    """The command runs unbuffered in a process of its own: a failed write at exit would give a traceback and exit code 120."""
    command = [sys.executable, "-u", "-c", "from drover.deploy.cli import main; main()", "recipes"]
    done = subprocess.run(command, stdout=closed_pipe, stderr=subprocess.PIPE, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
