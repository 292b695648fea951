"""Whoever started the run: shows its reports, keeps them, and turns them into summary and pictures at the end."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from io import BytesIO
from types import TracebackType
from typing import Protocol

import numpy as np

from drover.common.errors import BlobMissing
from drover.common.files import write_whole
from drover.common.media import blobs as media
from drover.common.protocols import BlobStore, Stream
from drover.common.types import Report
from drover.deploy.run_folder.history import by_name
from drover.deploy.run_folder.pictures import framed
from drover.deploy.run_folder.results import RunFolder

MOMENTS = ("before", "after")
TOLD = ("phase", "event", "end", "failed")  # kinds of reports that run.log repeats
log = logging.getLogger(__name__)


class View(Protocol):
    """What the driver feeds. A context manager: leaving it, also by Ctrl-C, leaves the terminal in order."""

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
        self.extra: dict[str, float] = {}  # what only the driver knows, added to every update
        self.last: dict[str, float] = {}  # the newest update's scalars
        self.ended: str | None = None
        self.failure: str | None = None
        self.ranks: dict[str, str] = {}  # of the learner -> HOST:PORT of its metrics

    def poll(self, wait_s: float) -> None:
        """Show and keep what has come."""
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
        if report.kind in TOLD:
            log.info("%s: %s", report.kind, report.text)
        self._view.update(report)
        if report.kind == "eval" and report.text == "before":
            self._tell_blind(report)
        if report.kind == "end":
            self.ended = report.text
        if report.kind == "failed":
            self.failure = report.text

    def _tell_blind(self, report: Report) -> None:
        """The evaluation before training is the first that is seen of a reward: say there that it gave no value."""
        blind = [name for name, count in by_name(report, "heldout/", "/count").items() if not count]
        if blind:
            text = f"no held-out sample got a value of {', '.join(blind)}; without any in training, too, the run fails"
            self.tell(replace(report, kind="event", text=text, scalars={}, media=()))

    def _keep_pictures(self, report: Report) -> None:
        """Keep the pictures of the media, whatever their kind. Without blobs there are none; the values are in the report."""
        archive = BytesIO()
        try:
            shown = framed([media.read(self._blobs, ref).pictures() for ref in report.media])
            np.savez_compressed(archive, media=shown, prompts=np.array(report.prompts))
            write_whole(self._folder.path / f"{report.text}.npz", archive.getvalue())
        except BlobMissing:
            log.warning("the pictures of the evaluation %s training are gone", report.text)
        self._blobs.drop([blob for ref in report.media for blob in ref.blobs])
