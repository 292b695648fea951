"""Everything rank 0 does for all ranks: issue orders, wait for measured groups, account for each one's ending."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from common.errors import DroverError
from common.metrics import Account
from common.protocols import BlobStore, Stream
from common.types import Ending, Purpose
from learner.assembler import Assembler
from learner.evaluation import Evaluation
from learner.examples import MeasuredGroup
from learner.feeder import Feeder
from learner.slots import Ledger, Slots


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerStreams:
    """The transport as the learner sees it. ``control`` brings the wish to stop, ``reports`` takes progress."""

    work: Stream
    rollouts: Stream
    measurements: Stream
    reports: Stream
    control: Stream
    blobs: BlobStore


class Intake:
    """Groups in, in the order of their places. Owns the waiting, and nothing else waits."""

    def __init__(
        self,
        feeder: Feeder,
        assembler: Assembler,
        evaluation: Evaluation,
        slots: Slots,
        ledger: Ledger,
        *,
        max_lag: int,
        account: Account,
        wait: Callable[[], None] | None,
        stall_s: float,
    ) -> None:
        """``wait`` replaces blocking reads where nobody else runs meanwhile (one process): it does some work itself.

        ``stall_s`` without any arrival is an error, so that a dead pool never means an endless wait.
        """
        self.feeder, self.assembler, self.evaluation, self.slots, self.ledger = (
            feeder,
            assembler,
            evaluation,
            slots,
            ledger,
        )
        self._max_lag, self._account, self._wait, self._stall_s = max_lag, account, wait, stall_s

    def collect(
        self, count: int, *, total: int, version: int, stopping: Callable[[], bool]
    ) -> list[MeasuredGroup] | None:
        """The groups of the next ``count`` places; None when told to stop. ``total``: places of the whole run."""
        quiet_since = time.monotonic()
        while True:
            if stopping():
                return None
            self._weed(version)
            for group in self.feeder.fill(total):  # also what was just lost, before a later place is taken for its own
                self.assembler.expect((Purpose.TRAIN, group))
            ready = [self.assembler.complete.get((Purpose.TRAIN, group)) for group in self._waiting[:count]]
            found = [group for group in ready if group is not None]
            if len(found) == count:
                return found
            if self._advance():
                quiet_since = time.monotonic()
            self._check_stall(quiet_since)

    def await_evaluation(self) -> None:
        """Block until the running evaluation can be collected; training groups that arrive meanwhile are kept."""
        quiet_since = time.monotonic()
        while not self.evaluation.done:
            if self._advance():
                quiet_since = time.monotonic()
            self._check_stall(quiet_since)

    def end(self, group: int, ending: Ending, reason: str = "") -> None:
        """The group's one ending. Its slot is given back separately, by `release`."""
        self.feeder.end(group, lost=ending in (Ending.FAILED, Ending.STALE))
        self.ledger.end(group, ending, reason)
        self.assembler.finish((Purpose.TRAIN, group))

    def release(self, count: int) -> None:
        """Give slots back: only once what the groups led to is visible to the actors."""
        self.slots.release(count)

    @property
    def _waiting(self) -> list[int]:
        """Issued training groups, in the order of training."""
        return [group for _, group in self.feeder.open]

    def _weed(self, version: int) -> None:
        """End groups that failed, or that are older than the bound (a pool that answers a former order late)."""
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
        """Wait a little for arrivals, charged to whoever is being waited for; whether anything came."""
        sampled = any(self.assembler.sampled((Purpose.TRAIN, group)) for group in self._waiting[:1])
        with self._account.part("wait_reward" if sampled else "wait_data"):
            if self._wait is not None:
                self._wait()
            return self.assembler.poll(0.0 if self._wait is not None else 0.2)

    def _check_stall(self, quiet_since: float) -> None:
        if time.monotonic() - quiet_since > self._stall_s:
            sampled = any(self.assembler.sampled((Purpose.TRAIN, group)) for group in self._waiting[:1])
            missing = "a reward" if sampled else "samples"
            raise DroverError(
                f"nothing arrived for {self._stall_s:.0f} s while the learner waits for {missing}; "
                "look at the logs of the rollout and reward pools: one of them is dead or far too slow (--stall-s)"
            )

    def _check_futility(self) -> None:
        """Stop when failure is the rule: nothing ever succeeded, and a whole budget of groups has failed."""
        failed = self.ledger.endings[Ending.FAILED]
        if failed >= 2 * self.slots.capacity and failed == self.ledger.endings.total():
            reason = self.ledger.reasons.most_common(1)[0][0]
            raise DroverError(f"all of the first {failed} groups failed; most often: {reason}")
