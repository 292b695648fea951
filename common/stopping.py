"""Catch the signals that ask a process to stop: Ctrl-C, SIGTERM, and SIGHUP, which comes when a terminal or ssh closes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def stop_on_signals() -> Callable[[], bool]:
    """Catch these signals from now on. The returned function says whether one has come.

    A Ctrl-C after any of them raises KeyboardInterrupt, as the user does not want to wait. SIGHUP stays ignored where it
    is ignored already: under nohup the process should outlive its session.
    """
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, ask)
    return lambda: bool(asked)


@contextmanager
def children_outlive_the_session() -> Iterator[None]:
    """Block SIGHUP for processes started in the block, so that a run whose terminal closes can stop them in order.

    A SIGHUP that comes meanwhile reaches this process after the block.
    """
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGHUP}
    )  # child processes inherit the mask, even across exec
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
