"""Shows a run while it goes on: a live table on a terminal, plain lines elsewhere. Reads reports, writes no file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from drover.common.types import Report
from drover.deploy.run_folder.history import History, duration, health, number, position, share
from drover.deploy.run_folder.watch import View
from drover.deploy.views.live_view import LiveProgress

if TYPE_CHECKING:
    from rich.console import Console

LINE_INTERVAL_S = 1.0  # plain output shows at most one update per second of the run


def progress_view(run: str, recipe: str, *, console: Console | None = None, plain: bool | None = None) -> View:
    """Return the live view on a terminal, plain lines elsewhere; ``plain`` overrides this."""
    from rich.console import Console

    console = console or Console(file=sys.stdout)
    if plain is None:
        plain = not console.is_terminal or console.is_dumb_terminal
    return PlainProgress(console) if plain else LiveProgress(run, recipe, console)


def show(reports: Iterable[Report], view: View) -> None:
    """Feed all reports to the view. Ctrl-C restores the terminal and raises KeyboardInterrupt."""
    with view:
        for report in reports:
            view.update(report)


class PlainProgress:
    """Prints a line per update, at most one per second, but always the first and last; and per phase, event and evaluation."""

    def __init__(self, console: Console) -> None:
        self._file = console.file
        self._history = History()
        self._shown_s = float("-inf")
        self._held_back: Report | None = None

    def update(self, report: Report) -> None:
        history = self._history
        report = history.add(report)
        if report.kind == "update":
            self._held_back = report
            if report.at_s - self._shown_s >= LINE_INTERVAL_S:
                self._show_held_back()
            return
        self._show_held_back()
        if report.kind == "phase":
            self._line(report, report.text)
        elif report.kind == "event":
            self._line(report, f"event: {report.text}")
        elif report.kind == "eval":
            self._line(report, self._evaluation())
        elif report.kind == "end":
            self._line(report, f"end: {report.text}" if report.text else "end")

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._show_held_back()

    def _show_held_back(self) -> None:
        if self._held_back is not None:
            report, self._held_back = self._held_back, None
            self._shown_s = report.at_s
            self._line(report, "  ".join([position(self._history), *self._numbers()]))

    def _numbers(self) -> list[str]:
        last = self._history.last
        parts = [
            f"{name} {number(last.get(f'reward/{name}/mean'))}"
            + _plus_minus(last.get(f"reward/{name}/std"))
            + _valid(last.get(f"reward/{name}/valid_share", 1.0))
            for name in self._history.rewards
            if {f"reward/{name}/mean", f"reward/{name}/valid_share"} & last.keys()
        ]
        parts += [f"{label} {value}" for label, value, _ in health(self._history)]
        to_go_s = self._history.to_go_s()
        return parts + ([f"to go {duration(to_go_s)}"] if to_go_s else [])

    def _evaluation(self) -> str:
        held = self._history.evals[-1]
        values = "  ".join(
            f"{name} {number(held.means[name])}{self._since_before(name)}"
            if name in held.means
            else f"{name} no valid value"
            for name in {**held.counts, **held.means}
        )
        count = f" ({max(held.counts.values()):.0f} samples)" if held.counts else ""
        return f"held out {held.when} training: {values}{count}"

    def _since_before(self, name: str) -> str:
        _, means = self._history.held_out(name)
        return f" (from {number(means[0])})" if len(means) > 1 else ""

    def _line(self, report: Report, text: str) -> None:
        self._file.write(f"[{duration(report.at_s):>7}] {text}\n")
        self._file.flush()


def _valid(part: float) -> str:
    return f" (valid {share(part)})" if part < 1 else ""


def _plus_minus(spread: float | None) -> str:
    return "" if spread is None else f" +-{spread:#.2g}".rstrip(".")
