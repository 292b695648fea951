"""Gather measured groups for all ranks: issue orders, wait for their answers, account for the ending of each group.

Some stream always holds an entry for an open group, because every role puts its product before it acknowledges. If all
streams are empty while groups are open, then Redis has lost these groups: they are ordered again.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from drover.common.errors import BlobMissing, DroverError
from drover.common.metrics import Account
from drover.common.protocols import BlobStore, Stream
from drover.common.types import Ending, Purpose, Report
from drover.learner.examples import MeasuredGroup
from drover.learner.intake.assembler import Assembler, Key
from drover.learner.intake.evaluation import Evaluation
from drover.learner.intake.feeder import Feeder
from drover.learner.intake.slots import Ledger, Slots

FUTILE = 20  # the minimum of consecutive failures that end a run in which some groups have succeeded
LOSS_CHECK_S = 1.0  # seconds without an arrival before each check whether Redis has lost the open groups

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerStreams:
    """The streams and blobs that the learner uses. ``control`` brings the request to stop, ``reports`` takes progress."""

    work: Stream
    evaluation: Stream  # orders of evaluations; the same as ``work`` where the actors do them
    rollouts: Stream
    measurements: Stream
    reports: Stream
    control: Stream
    blobs: BlobStore


class Intake:
    """Gathers measured groups, in the order of their places. The only part of the learner that waits for other roles."""

    def __init__(
        self,
        feeder: Feeder,
        assembler: Assembler,
        evaluation: Evaluation,
        slots: Slots,
        ledger: Ledger,
        streams: LearnerStreams,
        *,
        max_lag: int,
        account: Account,
        wait: Callable[[], None] | None,
        stall_s: float,
    ) -> None:
        """``wait`` replaces blocking reads where all roles share one process: it does some work of the other roles.

        ``stall_s`` seconds without any arrival are an error, so that the learner never waits endlessly for a dead pool.
        """
        self.feeder, self.assembler, self.evaluation, self.slots, self.ledger = (
            feeder,
            assembler,
            evaluation,
            slots,
            ledger,
        )
        self._streams, self._max_lag, self._account = streams, max_lag, account
        self._wait, self._stall_s = wait, stall_s
        self._looked_s = 0.0  # the time of the last check for losses
        self._failures: Counter[str] = Counter()  # the reasons of failed groups since the last success

    def collect(
        self, count: int, *, total: int, version: int, stopping: Callable[[], bool]
    ) -> list[MeasuredGroup] | None:
        """The groups of the next ``count`` places; None when told to stop. ``total``: places of the whole run."""
        quiet_since = time.monotonic()
        while True:
            if stopping():
                return None
            self._weed(version)
            for group in self.feeder.fill(total):  # first the places of groups that were just lost, then new ones
                self.assembler.expect((Purpose.TRAIN, group))
            ready = [self.assembler.complete.get((Purpose.TRAIN, group)) for group in self._waiting[:count]]
            found = [group for group in ready if group is not None]
            if len(found) == count:
                return found
            if self._advance():
                quiet_since = time.monotonic()
            else:
                self._mend(quiet_since)
            self._check_stall(quiet_since)

    def await_evaluation(self) -> None:
        """Block until the running evaluation can be collected; training groups that arrive meanwhile are kept."""
        quiet_since = time.monotonic()
        while not self.evaluation.done:
            if self._advance():
                quiet_since = time.monotonic()
            else:
                self._mend(quiet_since)
            self._check_stall(quiet_since, "an evaluation")

    def end(self, group: int, ending: Ending, reason: str = "") -> None:
        """End a group, once. Its slot is given back separately, by `release`."""
        self.feeder.end(group, lost=ending in (Ending.FAILED, Ending.STALE))
        self.ledger.end(group, ending, reason)
        if ending is Ending.FAILED:
            self._failures[reason] += 1
        elif ending is not Ending.STALE:
            self._failures.clear()
        self.assembler.finish((Purpose.TRAIN, group))

    def release(self, count: int) -> None:
        """Give slots back, once the weights that the groups led to are visible to the actors."""
        self.slots.release(count)

    @property
    def _waiting(self) -> list[int]:
        """Issued training groups, in the order of training."""
        return [group for _, group in self.feeder.open]

    def _weed(self, version: int) -> None:
        """End groups that failed, or that are older than the bound (a late answer to a former order)."""
        for group in self._waiting:
            key = (Purpose.TRAIN, group)
            failed = self.assembler.failed.get(key)
            complete = self.assembler.complete.get(key)
            if failed is not None:
                self.end(group, Ending.FAILED, f"{failed.stage}: {failed.reason}")
                self.release(1)
                self._check_futility()
            elif complete is not None and version - complete.rollout.version > self._max_lag:
                self.end(group, Ending.STALE)
                self.release(1)

    def _advance(self) -> bool:
        """Wait a little for arrivals, and charge the time to the awaited role. Returns whether any message came."""
        sampled = any(self.assembler.sampled((Purpose.TRAIN, group)) for group in self._waiting[:1])
        with self._account.part("wait_reward" if sampled else "wait_data"):
            if self._wait is not None:
                self._wait()
            return self.assembler.poll(0.0 if self._wait is not None else 0.2)

    def _mend(self, quiet_since: float) -> None:
        """Order open groups again if all their messages are lost: Redis came back empty, or has dropped a part."""
        now_s = time.monotonic()
        if now_s - max(quiet_since, self._looked_s) < LOSS_CHECK_S:
            return
        self._looked_s = now_s
        streams = self._streams
        # The streams are looked at in the order in which work passes through them, so that no message is overlooked.
        if any(s.outstanding() for s in (streams.work, streams.evaluation, streams.rollouts, streams.measurements)):
            return
        epoch, lost = time.time_ns(), self._lost()
        text = f"Redis has lost what was under way; {len(lost)} groups are ordered again"
        log.warning(text)
        self.assembler.start_over(epoch)
        for group in lost:
            self.assembler.expect((Purpose.TRAIN, group))
        self.feeder.start_over(epoch, lost)
        self.evaluation.start_over(epoch)
        streams.reports.put(Report(kind="event", at_s=0.0, version=-1, scalars={}, text=text))

    def _lost(self) -> list[int]:
        """Open training groups that have not failed and cannot be trained: they are incomplete, or a blob is missing."""
        keys = {group: (Purpose.TRAIN, group) for group in self._waiting}
        return [group for group, key in keys.items() if key not in self.assembler.failed and not self._stored(key)]

    def _stored(self, key: Key) -> bool:
        """Whether the group is complete and its blobs can be read."""
        complete = self.assembler.complete.get(key)
        if complete is None:
            return False
        try:
            for blob in complete.rollout.learned_blobs:
                self._streams.blobs.get(blob, 0, 1)
        except BlobMissing:
            return False
        return True

    def _check_stall(self, quiet_since: float, missing: str = "") -> None:
        if time.monotonic() - quiet_since > self._stall_s:
            sampled = any(self.assembler.sampled((Purpose.TRAIN, group)) for group in self._waiting[:1])
            missing = missing or ("a reward" if sampled else "samples")
            raise DroverError(
                f"nothing arrived for {self._stall_s:.0f} s while the learner waits for {missing}; "
                "look at the logs of the rollout, evaluation and reward pools: one is dead, or "
                "far too slow (then raise stall_s of the recipe's RunConfig)"
            )

    def _check_futility(self) -> None:
        """Raise when twice as many groups as there are slots have failed in a row, without a success in between.

        A failed group is ordered again in its place, so one prompt that always fails ends the run in this way, too.
        """
        failed = self._failures.total()
        begun = self.ledger.endings.total() > self.ledger.endings[Ending.FAILED]
        if failed >= max(2 * self.slots.capacity, FUTILE if begun else 0):
            reason = self._failures.most_common(1)[0][0]
            raise DroverError(f"{failed} groups failed and none succeeded in between; most often: {reason}")
