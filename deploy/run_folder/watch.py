"""Shows a run's reports, keeps them, and turns them into summary and pictures at the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Protocol

import numpy as np

from drover.common.errors import BlobMissing
from drover.common.media import blobs as media
from drover.common.protocols import BlobStore, Stream
from drover.common.types import Report
from drover.deploy.run_folder.pictures import framed, paired
from drover.deploy.run_folder.results import RunFolder

MOMENTS = ("before", "after")
log = logging.getLogger(__name__)


class View(Protocol):
    """The display that the driver feeds. A context manager: leaving it, also by Ctrl-C, leaves the terminal in order."""

    def update(self, report: Report) -> None: ...

    def __enter__(self) -> View: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


class Watcher:
    """Reads the reports stream. ``ended`` is the learner's last word: "finished", "stopped", or None so far.

    ``failure`` is why the learner gave up, if it did.
    """

    def __init__(self, reports: Stream, blobs: BlobStore, folder: RunFolder, view: View) -> None:
        self._reports, self._blobs, self._folder, self._view = reports, blobs, folder, view
        former = folder.reports()
        self._started = time.monotonic() - (former[-1].at_s if former else 0.0)
        self.extra: dict[str, float] = {}  # known to the driver alone, added to every update
        self.last: dict[str, float] = {}  # the newest update's scalars
        self.ended: str | None = None
        self.failure: str | None = None
        self.ranks: dict[str, str] = {}  # of the learner -> HOST:PORT of its metrics

    def poll(self, wait_s: float) -> None:
        """Show and keep the reports that have come."""
        for delivery in self._reports.take(64, wait_s):
            assert isinstance(delivery.message, Report), delivery.message
            self._hear(delivery.message)
            self._reports.ack(delivery)

    def _hear(self, report: Report) -> None:
        if report.kind != "joined":
            self.tell(report)
            return
        rank, address = report.text.split()
        if rank in self.ranks:
            self.tell(replace(report, kind="event", text=f"{rank} died and was replaced"))
        self.ranks[rank] = address

    def tell(self, report: Report) -> None:
        """One report, of the learner's or of our own, put on the run's one clock: seconds since the command, all lives."""
        report = replace(report, at_s=time.monotonic() - self._started)
        if report.media:
            self._keep_pictures(report)
        if report.kind == "update":
            report = replace(report, scalars=report.scalars | self.extra)
            self.last = dict(report.scalars)
        self._folder.append(report)
        self._view.update(report)
        if report.kind == "end":
            self.ended = report.text
        if report.kind == "failed":
            self.failure = report.text

    def conclude(self, facts: Mapping[str, object]) -> dict[str, object]:
        """Write summary.json and the pictures; returns the summary. ``facts`` are added to it."""
        reports = self._folder.reports()
        summary = summarise(reports) | dict(facts)
        self._folder.write_summary(summary)
        self._folder.draw_curves()
        pictures = {moment: self._folder.path / f"{moment}.npz" for moment in MOMENTS}
        if all(path.exists() for path in pictures.values()):
            pair = paired(*(np.load(pictures[moment], allow_pickle=False) for moment in MOMENTS))
            if pair is not None:
                self._folder.draw_samples(pair)
        return summary

    def _keep_pictures(self, report: Report) -> None:
        """Keep the pictures of media of any kind. Without blobs there are none; the values are in the report."""
        kept = self._folder.path / f"{report.text}.npz"
        try:
            shown = framed([media.read(self._blobs, ref).pictures() for ref in report.media])
            np.savez_compressed(kept, media=shown, prompts=np.array(report.prompts))
        except BlobMissing:
            log.warning("the pictures of the evaluation %s training are gone", report.text)
        self._blobs.drop([blob for ref in report.media for blob in ref.blobs])


def summarise(reports: list[Report]) -> dict[str, object]:
    """The numbers of a run: held-out reward before and after by name, and its cost."""
    last = next((r for r in reversed(reports) if r.kind in ("end", "update")), None)
    updates = [r for r in reports if r.kind == "update"]
    ledger = {key.removeprefix("ledger/"): int(value) for key, value in _scalars(last) if key.startswith("ledger/")}
    return {
        "reward_before": _heldout(reports, "before"),
        "reward_after": _heldout(reports, "after"),
        "reward_limit": _heldout(reports, "after", "limit"),
        "updates": int(dict(_scalars(last)).get("update", 0)),
        "samples": int(dict(_scalars(last)).get("samples", 0)),
        "wall_s": round(last.at_s, 2) if last else 0.0,
        "first_update_s": round(updates[0].at_s, 2) if updates else None,
        "max_lag_seen": int(max((r.scalars.get("lag_max", 0.0) for r in updates), default=0)),
        "ledger": ledger,
        "ended": last.text if last is not None and last.kind == "end" else "interrupted",
    }


def _scalars(report: Report | None) -> list[tuple[str, float]]:
    return [] if report is None else list(report.scalars.items())


def _heldout(reports: list[Report], moment: str, what: str = "mean") -> dict[str, float]:
    """By "SET/REWARD", at the newest evaluation of that moment."""
    found = [r for r in reports if r.kind == "eval" and r.text == moment]
    if not found:
        return {}
    return {
        name.removeprefix("heldout/").removesuffix(f"/{what}"): value
        for name, value in found[-1].scalars.items()
        if name.startswith("heldout/") and name.endswith(f"/{what}")
    }
