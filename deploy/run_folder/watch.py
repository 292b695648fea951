"""Reads the reports of a run, writes them and the pictures of evaluations into the run folder, and feeds the view."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from io import BytesIO
from threading import RLock
from types import TracebackType
from typing import Protocol

import numpy as np

from drover.common.errors import BlobMissing
from drover.common.files import write_whole
from drover.common.media import blobs as media
from drover.common.protocols import BlobStore, Stream
from drover.common.types import Report
from drover.deploy.run_folder import gains
from drover.deploy.run_folder.history import by_name
from drover.deploy.run_folder.pictures import framed
from drover.deploy.run_folder.results import RunFolder
from drover.deploy.run_folder.run_log import keep_end

MOMENTS = ("before", "after")
TOLD = ("phase", "event", "end", "failed")  # kinds of reports that run.log repeats
log = logging.getLogger(__name__)


class View(Protocol):
    """The display of a run, which gets every report. Leaving its context, also by Ctrl-C, restores the terminal."""

    def update(self, report: Report) -> None: ...

    def __enter__(self) -> View: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


class Watcher:
    """Reads the stream of reports. ``ended`` is how the learner ended: "finished", "stopped", or None so far.

    ``failure`` is the reason why the learner failed, or None.
    """

    def __init__(self, reports: Stream, blobs: BlobStore, folder: RunFolder, view: View) -> None:
        self._reports, self._blobs, self._folder, self._view = reports, blobs, folder, view
        former = folder.reports()
        self._started = time.monotonic() - (former[-1].at_s if former else 0.0)
        self.extra: dict[str, float] = {}  # the driver's scalars, which are added to every update
        self.last: dict[str, float] = {}  # the newest update's scalars
        self.ended: str | None = None
        self.failure: str | None = None
        self.ranks: dict[str, str] = {}  # rank of the learner -> HOST:PORT of its metrics
        self._logs: dict[str, str] = {}  # rank -> path of its log on its node
        self._telling = RLock()  # a thread that loses Redis reports it at once, also during another report

    def poll(self, wait_s: float) -> None:
        """Show and keep the new reports; wait up to ``wait_s`` seconds for the first."""
        for delivery in self._reports.take(64, wait_s):
            assert isinstance(delivery.message, Report), delivery.message
            self._hear(delivery.message)
            self._reports.ack(delivery)

    def _hear(self, report: Report) -> None:
        if report.kind == "traceback":
            log.error("the learner failed:\n%s", report.text)
            return
        if report.kind != "joined":
            self.tell(report)
            return
        rank, address, path = report.text.split(" ", 2)
        if rank in self.ranks:
            self.tell(replace(report, kind="event", text=f"{rank} died and was replaced"))
            keep_end(rank, self._logs[rank])
        self.ranks[rank], self._logs[rank] = address, path

    def tell(self, report: Report) -> None:
        """Show and keep one report of the learner or of this process.

        Its time becomes that of the run: seconds since the command started, continued over restarts.
        """
        with self._telling:
            self._tell(replace(report, at_s=time.monotonic() - self._started))

    def _tell(self, report: Report) -> None:
        if report.media:
            self._keep_pictures(report)
        if report.values:
            gains.keep(self._folder.path, report.text, report.values)
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
        """Report the rewards that gave no value in the evaluation before training, which is the first sign of trouble."""
        counts = by_name(report, "heldout/", "/count")
        blind = [key.rpartition("/") for key, count in counts.items() if not count]
        if blind:
            named = ", ".join(f"{reward} (set {held})" for held, _, reward in blind)
            text = f"no held-out sample got a value of {named}; a task that gets none in training, too, fails the run"
            self.tell(replace(report, kind="event", text=text, scalars={}, media=()))

    def _keep_pictures(self, report: Report) -> None:
        """Write the pictures of an evaluation's media into the run folder. They are lost if their blobs have expired."""
        archive = BytesIO()
        try:
            shown = framed([media.read(self._blobs, ref).pictures() for ref in report.media])
            np.savez_compressed(archive, media=shown, prompts=np.array(report.prompts))
            write_whole(self._folder.path / f"{report.text}.npz", archive.getvalue())
        except BlobMissing:
            log.warning("the pictures of the evaluation %s training are gone", report.text)
        self._blobs.drop([blob for ref in report.media for blob in ref.blobs])
