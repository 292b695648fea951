"""Take a run's rollout groups from a stream as jobs, fetch their media from blobs, and put measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

import numpy as np

from drover.common import metrics, tensors
from drover.common.errors import BlobMissing
from drover.common.media import blobs as media_blobs
from drover.common.protocols import BlobStore, Delivery, Meter, Scores, Stream
from drover.common.types import Measurement, RolloutGroup, TensorRef
from drover.reward_servers.serving.batching import Job
from drover.reward_servers.serving.inbox import Answer

MAX_ATTEMPTS = 3  # deliveries of one group, after which all its samples are masked unscored


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """The `Inbox` that takes the rollout groups that name one reward, for the server ``name`` of its pool.

    A group is acknowledged once its measurement is put; a crash before that makes another server measure it again.
    """

    name: str
    reward: str
    rollouts: Stream
    measurements: Stream
    blobs: BlobStore
    meter: Meter

    def take(self, limit: int, wait_s: float) -> list[Delivery]:
        return self.rollouts.take(limit, wait_s)

    def open(self, tickets: Sequence[Delivery]) -> list[Job[Delivery]]:
        """Fetch the media of the groups that wait for this reward; the other groups are acknowledged."""
        arrived_s, jobs = monotonic(), []
        for delivery in tickets:
            job = self._job(delivery, arrived_s)
            if job is None:
                self.rollouts.ack(delivery)
            else:
                jobs.append(job)
        return jobs

    def answer(self, answers: Sequence[Answer[Delivery]]) -> None:
        """Put all measurements first, because the learner waits for them; then acknowledge all groups."""
        for answer in answers:
            self.measurements.put(self._measurement(answer))
        for answer in answers:
            self.rollouts.ack(answer.job.ticket)

    def close(self) -> None:
        self.rollouts.close()

    def _job(self, delivery: Delivery, arrived_s: float) -> Job[Delivery] | None:
        """The job of a group; None where the group does not name this reward, or has ended."""
        group = _group(delivery)
        self.meter.add(metrics.REDELIVERIES, float(delivery.attempt > 1), stream="rollouts")
        if self.reward not in group.rewards or group.media is None:
            return None
        media, spoiled = None, ""
        if delivery.attempt > MAX_ATTEMPTS:
            spoiled = f"{MAX_ATTEMPTS} attempts ended without a result"
        else:
            try:
                media = media_blobs.read(self.blobs, group.media)
            except BlobMissing:
                return None
            self.meter.add(metrics.BLOB_READ_BYTES, group.media.nbytes, role="reward")
        return Job(
            name=f"group {group.group}",
            ticket=delivery,
            prompts=group.asked,
            samples=[group.samples_per_prompt] * len(group.prompts),
            media=media,
            arrived_s=arrived_s,
            attempt=delivery.attempt,
            spoiled=spoiled,
        )

    def _measurement(self, answer: Answer[Delivery]) -> Measurement:
        group, scores = _group(answer.job.ticket), answer.scores
        reasons, refs = tuple(scores.reasons or ()), self._store(group, scores)
        return Measurement(
            epoch=group.epoch,
            group=group.group,
            attempt=group.attempt,
            purpose=group.purpose,
            reward=self.reward,
            values=tuple(scores.values),
            valid=tuple(reason == "" for reason in reasons),
            reasons=reasons,
            uncertainty=None if scores.uncertainty is None else tuple(scores.uncertainty),
            parts=refs.get("parts"),
            features=refs.get("features"),
            worker=self.name,
            scoring_s=answer.scoring_s,
            waited_s=answer.waited_s,
        )

    def _store(self, group: RolloutGroup, scores: Scores) -> dict[str, TensorRef]:
        """Put the parts and features into a blob and return references to them; {} without any."""
        beside: dict[str, np.ndarray] = {}
        if scores.parts is not None:
            beside["parts"] = scores.parts
        if scores.features is not None:
            beside["features"] = scores.features
        if not beside:
            return {}
        blob = f"{group.epoch}.{group.purpose}.{group.group}.{group.attempt}.{self.name}/{self.reward}"
        parts, refs = tensors.pack(blob, beside)
        self.blobs.put(blob, parts)
        self.meter.add(metrics.BLOB_WRITTEN_BYTES, sum(ref.nbytes for ref in refs.values()), role="reward")
        return refs


def _group(delivery: Delivery) -> RolloutGroup:
    assert isinstance(delivery.message, RolloutGroup), delivery.message
    return delivery.message
