"""Join rollouts with their measurements. Two deliveries of one group stay apart; the first complete one wins.

Everything read is acknowledged at once: it is in memory, and a learner that restarts orders open groups anew.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from drover.common import tensors
from drover.common.protocols import BlobStore, Stream
from drover.common.types import GroupFailed, Measurement, Message, Purpose, RolloutGroup
from drover.learner.examples import Measured, MeasuredGroup

Key = tuple[Purpose, int]


@dataclass(slots=True)
class _Attempt:
    """One delivery's parts as they come in."""

    rollout: RolloutGroup | None = None
    measurements: dict[str, Measurement] = field(default_factory=dict)


class Assembler:
    """Holds open groups until every reward that they name has answered.

    Only keys passed to `expect` are kept; answers to anything else (a former life of the learner, a group that has
    ended) are forgotten and their blobs dropped.
    """

    def __init__(
        self,
        rollouts: Stream,
        measurements: Stream,
        blobs: BlobStore,
        *,
        epoch: int,
    ) -> None:
        self._rollouts, self._measurements, self._blobs, self._epoch = rollouts, measurements, blobs, epoch
        self._open: dict[Key, dict[int, _Attempt]] = {}
        self.complete: dict[Key, MeasuredGroup] = {}
        self.failed: dict[Key, GroupFailed] = {}
        self.masked: dict[tuple[str, str], int] = {}  # (reward, reason) -> samples, ever

    def expect(self, key: Key) -> None:
        """An order was issued under this key; a former one is forgotten, and its blobs are dropped."""
        self._forget(key)
        self._open[key] = {}

    def start_over(self, epoch: int) -> None:
        """Only answers of this epoch count from now on. What is complete stays so, the rest is awaited anew."""
        self._epoch = epoch
        for key, attempts in self._open.items():
            self._open[key] = {}
            for attempt in attempts.values():
                self._drop(attempt)

    def poll(self, wait_s: float) -> bool:
        """Read what has arrived, waiting at most ``wait_s`` for the first measurement; whether anything came.

        A rollout is always there before its measurement, so that what was measured is complete once this returns.
        """
        came = False
        for stream, wait in ((self._measurements, wait_s), (self._rollouts, 0.0)):
            for delivery in stream.take(256, wait):
                self._receive(delivery.message)
                stream.ack(delivery)
                came = True
        return came

    def sampled(self, key: Key) -> bool:
        """Whether the group's samples are here, so that only rewards are missing."""
        return key in self.complete or any(attempt.rollout for attempt in self._open.get(key, {}).values())

    def finish(self, key: Key, *, keep: Collection[str] = ()) -> None:
        """The group has ended: forget it and free its blobs, but for those to ``keep``, which are still to be shown."""
        self._forget(key, keep)
        self._open.pop(key, None)

    def _forget(self, key: Key, keep: Collection[str] = ()) -> None:
        group = self.complete.pop(key, None)
        self.failed.pop(key, None)
        if group is not None:
            self._blobs.drop([blob for blob in group.rollout.blobs if blob not in keep])
        for attempt in self._open.get(key, {}).values():
            self._drop(attempt)

    def _receive(self, message: Message) -> None:
        assert isinstance(message, RolloutGroup | Measurement | GroupFailed), message
        key = (message.purpose, message.group)
        if message.epoch != self._epoch or key not in self._open:
            known = self.complete.get(key)
            # The same message twice, as after a lost answer, names the blobs of the group that waits for training.
            if not isinstance(message, GroupFailed) and (known is None or known.rollout.blobs != message.blobs):
                self._blobs.drop(message.blobs)
            return
        if isinstance(message, GroupFailed):
            self.failed[key] = message
            return
        attempt = self._open[key].setdefault(message.attempt, _Attempt())
        if isinstance(message, RolloutGroup):
            attempt.rollout = message
        else:
            former = attempt.measurements.get(message.reward)
            if former is not None and former.blobs != message.blobs:  # another server's, which was thought dead
                self._blobs.drop(former.blobs)
            attempt.measurements[message.reward] = message
        self._settle(key, attempt)

    def _settle(self, key: Key, attempt: _Attempt) -> None:
        """Complete the group if this attempt has everything; the other attempts' blobs are freed."""
        if attempt.rollout is None or not set(attempt.rollout.rewards) <= attempt.measurements.keys():
            return
        others = self._open.pop(key)
        rewards = {name: self._arrays(answer) for name, answer in attempt.measurements.items()}
        self.complete[key] = MeasuredGroup(attempt.rollout, rewards)
        self.failed.pop(key, None)
        for other in others.values():
            if other is not attempt:
                self._drop(other)
        media = attempt.rollout.media
        if media is not None and attempt.rollout.purpose is Purpose.TRAIN:
            self._blobs.drop(media.blobs)  # pixels weigh more than what is trained on, and only rewards look at them
        for measurement in attempt.measurements.values():
            for reason in filter(None, measurement.reasons):
                place = (measurement.reward, reason)
                self.masked[place] = self.masked.get(place, 0) + 1

    def _arrays(self, answer: Measurement) -> Measured:
        """The measurement as arrays, its blob read and freed."""
        parts, features = (
            None if ref is None else tensors.read(self._blobs, ref).numpy() for ref in (answer.parts, answer.features)
        )
        self._blobs.drop(answer.blobs)
        return Measured(
            values=np.asarray(answer.values, np.float64),
            valid=np.asarray(answer.valid, bool),
            scoring_s=answer.scoring_s,
            uncertainty=None if answer.uncertainty is None else np.asarray(answer.uncertainty, np.float64),
            parts=parts,
            features=features,
        )

    def _drop(self, attempt: _Attempt) -> None:
        for message in (attempt.rollout, *attempt.measurements.values()):
            if message is not None:
                self._blobs.drop(message.blobs)
