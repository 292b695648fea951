"""Join rollouts with their measurements. Two attempts at one group are kept apart; the first complete one wins.

Every message is acknowledged as soon as it is read: it is in memory, and a learner that restarts orders open groups anew.
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
    """The messages of one attempt that have arrived."""

    rollout: RolloutGroup | None = None
    measurements: dict[str, Measurement] = field(default_factory=dict)


class Assembler:
    """Holds open groups until every reward that they name has answered.

    Only answers to keys passed to `expect` are kept; other answers (to orders from before a restart, to a group that has
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
        """Keep the answers to an order that was issued under this key. Forgets a former order and drops its blobs."""
        self._forget(key)
        self._open[key] = {}

    def start_over(self, epoch: int) -> None:
        """Accept only answers of this epoch from now on. Complete groups stay complete; the others are awaited anew."""
        self._epoch = epoch
        for key, attempts in self._open.items():
            self._open[key] = {}
            for attempt in attempts.values():
                self._drop(attempt)

    def poll(self, wait_s: float) -> bool:
        """Read all messages, waiting at most ``wait_s`` for the first measurement. Returns whether any message came.

        A rollout always arrives before its measurement, so a group whose measurements are all read is complete.
        """
        came = False
        for stream, wait in ((self._measurements, wait_s), (self._rollouts, 0.0)):
            for delivery in stream.take(256, wait):
                self._receive(delivery.message)
                stream.ack(delivery)
                came = True
        return came

    def sampled(self, key: Key) -> bool:
        """Whether the group's rollout has arrived, so that only measurements are missing."""
        return key in self.complete or any(attempt.rollout for attempt in self._open.get(key, {}).values())

    def finish(self, key: Key, *, keep: Collection[str] = ()) -> None:
        """Forget a group that has ended and drop its blobs, except those to ``keep``, which are still to be shown."""
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
            if former is not None and former.blobs != message.blobs:  # from a server that had lost its lease
                self._blobs.drop(former.blobs)
            attempt.measurements[message.reward] = message
        self._settle(key, attempt)

    def _settle(self, key: Key, attempt: _Attempt) -> None:
        """Complete the group if this attempt has every message, and drop the blobs of the other attempts."""
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
            self._blobs.drop(media.blobs)  # larger than the latents to train on, and only rewards read them
        for measurement in attempt.measurements.values():
            for reason in filter(None, measurement.reasons):
                place = (measurement.reward, reason)
                self.masked[place] = self.masked.get(place, 0) + 1

    def _arrays(self, answer: Measurement) -> Measured:
        """Read a measurement into arrays and drop its blobs."""
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
