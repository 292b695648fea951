"""The live view of a run on a terminal: one panel that redraws itself. Reads a history, writes no file."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING

from drover.common.types import Report
from drover.deploy.run_folder.history import (
    History,
    by_name,
    duration,
    health,
    number,
    position,
    share,
    sparkline,
    update_index,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

NARROW = 80  # below this many columns the table leaves out spread and valid share
RECENT_EVENTS = 3
_FACTS_MARGIN = 12  # columns of the panel's frame and of the labels


class LiveProgress:
    """The panel of a run, redrawn four times a second, so that its clock runs between reports."""

    def __init__(self, run: str, recipe: str, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.live import Live

        self._title = (run, recipe)
        self._console = console
        self._clock = clock
        self._heard_s = clock()
        self._history = History()
        self._lock = Lock()  # the redrawing thread reads the history that `update` writes
        self._live = Live(console=console, get_renderable=self.render, refresh_per_second=4)

    def update(self, report: Report) -> None:
        with self._lock:
            self._history.add(report)
            self._heard_s = self._clock()

    def __enter__(self) -> LiveProgress:
        self._live.start(refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.stop()

    def render(self) -> RenderableType:
        """Return the panel, as wide as the console."""
        from rich.console import Group
        from rich.panel import Panel
        from rich.text import Text

        with self._lock:
            history = self._history
            silent_s = 0.0 if history.ended else self._clock() - self._heard_s
            parts: list[RenderableType] = [_header(history, silent_s), _bar(history)]
            if history.rewards:
                parts.append(_rewards(history, narrow=self._console.width < NARROW))
            parts.append(_facts(history, self._console.width - _FACTS_MARGIN))
        run, recipe = self._title
        title = Text(f" {run} ", style="bold") + Text(f"{recipe} ", style="dim")
        return Panel(Group(*parts), title=title, title_align="left", border_style="blue", padding=(0, 1))


def _header(history: History, silent_s: float) -> Table:
    from rich.table import Table
    from rich.text import Text

    to_go_s = history.to_go_s()
    times = f"elapsed {duration(history.elapsed_s + silent_s)}"
    if to_go_s is not None and not history.ended:
        since_update_s = history.elapsed_s + silent_s - history.updates[-1].at_s
        times += f"   to go {duration(max(0.0, to_go_s - since_update_s))}"
    grid = Table.grid(expand=True)
    grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    grid.add_column(justify="right", no_wrap=True)
    grid.add_row(Text(history.phase, style="bold green" if history.ended else "bold cyan"), Text(times))
    return grid


def _bar(history: History) -> Table:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    total = history.last.get("updates_total")
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    done = update_index(history.updates[-1]) if history.updates else 0
    grid.add_row(ProgressBar(total=total or 1.0, completed=done, complete_style="cyan"), position(history))
    return grid


def _rewards(history: History, *, narrow: bool) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False, padding=(0, 1), header_style="dim")
    table.add_column("reward", no_wrap=True, overflow="ellipsis", ratio=1)
    for heading in ("now", "change") if narrow else ("now", "change", "spread", "valid"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("history", no_wrap=True)
    table.add_column("held out", justify="right", no_wrap=True)
    for name in history.rewards:
        _, means = history.series(f"reward/{name}/mean")
        # Of the last update that has this reward.
        spread, valid = (history.series(f"reward/{name}/{what}")[1] for what in ("std", "valid_share"))
        told = Text(share(valid[-1]), style="bold red" if valid[-1] < 1 else "") if valid else Text("-")
        cells: list[str | Text] = [Text(name), number(means[-1] if means else None), _change(means)]
        if not narrow:
            cells += [number(spread[-1] if spread else None), told]
        elif valid and valid[-1] < 1:
            cells[0] = told + Text(f" of {name}", style="")
        _, held = history.held_out(name)
        held_out = " → ".join(number(mean) for mean in (held[:1] + held[-1:] if len(held) > 1 else held)) or "-"
        table.add_row(*cells, sparkline(means, 8 if narrow else 20), held_out)
    return table


def _facts(history: History, width: int) -> Table:
    """Return labelled lines: health, times, pools and queues, ledger, events. Lines without facts are left out."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    rows = {
        "health": [Text(f"{label} ") + Text(value, style=style) for label, value, style in health(history)],
        "time": _times(history),
        "pools": _pools(history),
        "ledger": _ledger(history),
    }
    for label, facts in rows.items():
        if facts:
            grid.add_row(label, _packed(facts, width))
    for event in history.events[-RECENT_EVENTS:]:
        grid.add_row("event", Text(f"{duration(event.at_s)}  {event.text}", style="yellow"))
    return grid


def _packed(facts: list[Text], width: int) -> Text:
    """Join the facts on as few lines as possible, without breaking a fact."""
    from rich.text import Text

    packed, used = Text(), 0
    for fact in facts:
        if used and used + 3 + fact.cell_len > width:
            packed.append("\n")
            used = 0
        packed.append("   " if used else "").append_text(fact)
        used += (3 if used else 0) + fact.cell_len
    return packed


def _times(history: History) -> list[Text]:
    """Return the two largest parts of each role's time so far."""
    from rich.text import Text

    roles: dict[str, list[tuple[float, str]]] = {}
    for key, seconds in _newest(history, "account/").items():
        role, _, part = key.partition("/")
        roles.setdefault(role, []).append((seconds, part.replace("_", " ")))
    facts = []
    for role, parts in roles.items():
        total_s = sum(seconds for seconds, _ in parts) or 1.0
        top = sorted(parts, reverse=True)[:2]
        shares = ", ".join(f"{part} {seconds / total_s:.0%}" for seconds, part in top if seconds > 0)
        facts.append(Text(f"{role}: {shares or 'nothing yet'}"))
    return facts


def _pools(history: History) -> list[Text]:
    from rich.text import Text

    ages = _newest(history, "queue/", "/age_s")
    pools = [Text(f"{name.removeprefix('reward/')} x{count:.0f}") for name, count in _newest(history, "pool/").items()]
    queues = [
        Text(f"{name} queue {backlog:.0f}" + (f" ({ages[name]:.1f} s)" if ages.get(name) else ""), style="dim")
        for name, backlog in _newest(history, "queue/", "/backlog").items()
    ]
    return pools + queues


def _ledger(history: History) -> list[Text]:
    from rich.text import Text

    return [
        Text(f"{name.replace('_', ' ')} {count:.0f}", style="yellow" if name in ("failed", "stale") and count else "")
        for name, count in _newest(history, "ledger/").items()
    ]


def _newest(history: History, prefix: str, suffix: str = "") -> dict[str, float]:
    return by_name(history.updates[-1], prefix, suffix) if history.updates else {}


def _change(means: list[float]) -> Text:
    from rich.text import Text

    if len(means) < 2:
        return Text("-")
    change = means[-1] - means[0]
    return Text(f"{change:+.3g}", style="green" if change > 0 else "red" if change < 0 else "")
