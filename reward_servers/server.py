"""Take rollout groups, score their media, put measurements. Knows one reward and no training.

Failure is never a zero: a sample that cannot be scored is masked with a reason, and counted.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from common import metrics, tensors
from common.errors import BlobMissing, ScoringFailed
from common.metrics import Account
from common.protocols import BlobStore, Delivery, Meter, Scorer, Scores, Stream
from common.types import Measurement, RolloutGroup

MAX_ATTEMPTS = 3  # deliveries of one group before all its samples are masked unscored
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardWiring:
    """What a reward server is connected to."""

    rollouts: Stream
    measurements: Stream
    blobs: BlobStore
    meter: Meter


@dataclass(frozen=True, slots=True)
class _Job:
    """A group in hand, with its media."""

    delivery: Delivery
    group: RolloutGroup
    media: np.ndarray  # [N, H, W, 3] uint8
    arrived: float

    @property
    def prompts(self) -> list[str]:
        """[N], one per sample."""
        each = self.group.samples_per_prompt
        return [prompt for prompt in self.group.prompts for _ in range(each)]


class RewardServer:
    """One worker of one reward's pool. Groups that arrive together are scored in one call, up to ``batch_groups``."""

    def __init__(self, name: str, reward: str, scorer: Scorer, wiring: RewardWiring, *, batch_groups: int = 8) -> None:
        self.name, self.reward, self.scorer, self.wiring = name, reward, scorer, wiring
        self.batch_groups = batch_groups
        self.account = Account("reward", wiring.meter)
        self.spent: dict[str, float] = {}  # a copy for other threads; the account belongs to the loop
        self.trouble = ""  # why a group could last not be scored

    def run(self, stopping: Callable[[], bool]) -> None:
        """Work until told to stop; what is held then is finished first, the rest handed back."""
        try:
            while not stopping():
                self.run_once(wait_s=0.5)
                self.spent = self.account.seconds()
        finally:
            self.wiring.rollouts.close()

    def run_once(self, wait_s: float) -> bool:
        """Score at most one batch of groups; whether there was one."""
        with self.account.part("wait_data"):
            deliveries = self.wiring.rollouts.take(self.batch_groups, wait_s)
        arrived = time.monotonic()
        with self.account.part("data"):
            jobs = [job for delivery in deliveries if (job := self._open(delivery, arrived)) is not None]
        if jobs:
            self._score(jobs)
        return bool(deliveries)

    def _open(self, delivery: Delivery, arrived: float) -> _Job | None:
        """The job with its media; None when there is nothing left to score, acknowledged then."""
        group = delivery.message
        assert isinstance(group, RolloutGroup), group
        if group.media is None:
            self.wiring.rollouts.ack(delivery)
            return None
        try:
            media = tensors.read(self.wiring.blobs, group.media).numpy()
        except BlobMissing:  # its group has ended elsewhere, so nobody waits for this measurement
            self.wiring.rollouts.ack(delivery)
            return None
        self.wiring.meter.add(metrics.BLOB_READ_BYTES, group.media.nbytes, role="reward")
        return _Job(delivery, group, media, arrived)

    def _score(self, jobs: Sequence[_Job]) -> None:
        """One call for all; if that fails, one per group, so that a poisoned group spoils no other."""
        started = time.monotonic()
        with self.account.part("compute"):
            try:
                scores = self._call(jobs)
            except ScoringFailed as error:
                if len(jobs) > 1:
                    for job in jobs:
                        self._score([job])
                    return
                log.warning("%s could not score group %d: %s", self.reward, jobs[0].group.group, error)
                self.trouble = str(error)
                scores = Scores([math.nan] * len(jobs[0].media), ["error"] * len(jobs[0].media))
        scoring_s = (time.monotonic() - started) / len(jobs)
        with self.account.part("data"):
            first = 0
            for job in jobs:
                self._answer(job, scores, slice(first, first + len(job.media)), scoring_s, started)
                first += len(job.media)

    def _call(self, jobs: Sequence[_Job]) -> Scores:
        """The scorer's answer for all samples of the jobs. Any failure of its is a `ScoringFailed`."""
        prompts = [prompt for job in jobs for prompt in job.prompts]
        media = jobs[0].media if len(jobs) == 1 else _concatenated([job.media for job in jobs])
        if any(job.delivery.attempt > MAX_ATTEMPTS for job in jobs):
            raise ScoringFailed(f"{MAX_ATTEMPTS} attempts ended without a result")
        try:
            scores = self.scorer(prompts, media)
        except Exception as error:  # a reward is foreign code: whatever it raises becomes a counted mask
            raise ScoringFailed(f"{type(error).__name__}: {error}") from error
        if len(scores.values) != len(prompts):
            raise ScoringFailed(f"returned {len(scores.values)} values for {len(prompts)} samples")
        return scores

    def _answer(self, job: _Job, scores: Scores, rows: slice, scoring_s: float, started: float) -> None:
        values = [float(value) for value in scores.values[rows]]
        given = scores.reasons[rows] if scores.reasons is not None else [""] * len(values)
        reasons = [reason or ("" if math.isfinite(v) else "nan") for v, reason in zip(values, given, strict=True)]
        group = job.group
        self.wiring.measurements.put(
            Measurement(
                epoch=group.epoch,
                group=group.group,
                attempt=group.attempt,
                purpose=group.purpose,
                reward=self.reward,
                values=tuple(values),
                valid=tuple(reason == "" for reason in reasons),
                reasons=tuple(reasons),
                uncertainty=None if scores.uncertainty is None else tuple(map(float, scores.uncertainty[rows])),
                features=None,
                worker=self.name,
                scoring_s=scoring_s,
                waited_s=started - job.arrived,
            )
        )
        self.wiring.rollouts.ack(job.delivery)
        self._count(reasons, scoring_s, started - job.arrived)

    def _count(self, reasons: Sequence[str], scoring_s: float, waited_s: float) -> None:
        meter, reward = self.wiring.meter, self.reward
        meter.add(metrics.SCORING_S, scoring_s, reward=reward)
        meter.add(metrics.REWARD_DELAY_S, scoring_s + waited_s, reward=reward)
        for reason in reasons:
            if reason:
                meter.add(metrics.MASKED_SAMPLES, 1, reward=reward, reason=reason)


def _concatenated(media: Sequence[np.ndarray]) -> np.ndarray:
    """[sum N, H, W, 3]. Groups of different sizes cannot share a call."""
    if len({m.shape[1:] for m in media}) > 1:
        raise ScoringFailed(f"images of different sizes in one batch: {sorted({m.shape[1:3] for m in media})}")
    return np.concatenate(media)
