"""Each stop signal lets a process end in order; children started by `children_outlive_the_session` survive a SIGHUP."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from drover.common.stopping import SIGNALS, children_outlive_the_session, stop_on_signals


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_of_them_asks_once_and_raises_nothing(number: signal.Signals) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    stopping = stop_on_signals()
    assert not stopping()
    signal.raise_signal(number)
    assert stopping()


def test_a_terminal_that_closes_sends_several_and_none_of_them_cuts_the_stop_short() -> None:
    """The shell sends SIGHUP, the kernel sends SIGHUP again, and systemd sends SIGTERM."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    stopping = stop_on_signals()
    for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGTERM):
        signal.raise_signal(number)
    assert stopping()


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_while_it_stops_does_not_wait(first: signal.Signals) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    stop_on_signals()
    signal.raise_signal(first)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_under_nohup_the_end_of_the_session_changes_nothing() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stopping = stop_on_signals()
    signal.raise_signal(signal.SIGHUP)
    assert not stopping()


def test_children_of_the_block_live_through_a_hang_up_and_this_process_hears_it_afterwards() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    stopping = stop_on_signals()
    with children_outlive_the_session():
        inside = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        signal.raise_signal(signal.SIGHUP)
        assert not stopping()
    assert stopping()
    outside = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    for child in (inside, outside):
        child.send_signal(signal.SIGHUP)
    assert outside.wait(30) == -signal.SIGHUP
    assert inside.poll() is None
    inside.communicate(b"\n")
    assert inside.returncode == 0
