"""Take orders, sample their groups, publish the rollouts. Knows no reward, no objective, no Redis.

The steps of an order: take -> (load weights if the version differs) -> sample -> put blobs, then the message, then ack. After
a crash before the ack, another actor samples the same group as the next attempt. An order that names a version is sampled
from that version or fails; other orders are sampled from the newest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from drover.actors.sampler import draws_of
from drover.common import metrics, tensors
from drover.common.diffusion.canary import canary
from drover.common.diffusion.chain import Chain, Recording, Trajectory
from drover.common.errors import BlobTooLarge, SamplingFailed, WeightsLost, WeightSyncFailed
from drover.common.media.blobs import pack
from drover.common.media.media import Media
from drover.common.media.media import rows as media_rows
from drover.common.metrics import Account
from drover.common.policies import conditioning
from drover.common.protocols import (
    BlobStore,
    Canary,
    Conditioning,
    Delivery,
    Draws,
    Meter,
    Policy,
    Sampler,
    Sampling,
    Stream,
    WeightSubscriber,
)
from drover.common.types import GroupFailed, MediaRef, Purpose, RolloutGroup, Stage, TensorRef, Transitions, WorkItem

MAX_ATTEMPTS = 3  # an order that has failed or crashed its actor this many times ends as failed
WEIGHTS_WAIT_S = 0.5
GIVE_WAY_S = 0.05
Role = Literal["actor", "evaluator"]
log = logging.getLogger(__name__)


def never() -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorWiring:
    """The streams, blobs, weights and metrics that an actor uses."""

    work: Stream
    rollouts: Stream
    failures: Stream
    blobs: BlobStore
    weights: WeightSubscriber
    meter: Meter
    give_way: Callable[[], bool] = never  # while it returns True, no order is taken, so that other actors get them


class Actor:
    """Samples the groups that orders ask for, with a policy and the samplers of the run, and publishes the rollouts.

    An evaluator is an actor whose ``work`` has only orders of evaluations; ``role`` is the label of its metrics.
    """

    def __init__(
        self,
        name: str,
        policy: Policy,
        sampler: Sampler,
        wiring: ActorWiring,
        *,
        first_condition: str | None,
        fingerprint: str,
        storage: torch.dtype,
        device: str,
        role: Role = "actor",
        batch_groups: int = 1,
        batch_samples: int = 1024,
        samplers: Mapping[str, Sampler] | None = None,
    ) -> None:
        """Up to ``batch_groups`` waiting orders are sampled in one batch; 1 gives the same bits for any waiting orders.

        ``batch_samples`` bounds the memory: larger batches go through the model in parts. ``samplers``: name of a held-out
        set -> its own sampler. The canary is computed with ``first_condition``.
        """
        self.name, self.policy, self.wiring = name, policy, wiring
        self._sampling = sampler.load(policy, device)
        self._heldout = {name: other.load(policy, device) for name, other in (samplers or {}).items()}
        self._first_condition = first_condition
        self.fingerprint, self.storage, self.device = fingerprint, storage, device
        self.batch_groups, self.batch_samples, self.role = batch_groups, batch_samples, role
        self.version = -1
        self._stopping: Callable[[], bool] = lambda: False
        self.account = Account(role, wiring.meter)
        self.spent: dict[str, float] = {}  # a copy for other threads; the account belongs to the loop

    def run(self, stopping: Callable[[], bool]) -> None:
        """Work until told to stop; then the batch in progress is finished, and other orders are handed back."""
        self._stopping = stopping
        try:
            while not stopping():
                self.run_once(wait_s=0.5)
                self.spent = self.account.seconds()
        finally:
            self.wiring.work.close()

    def run_once(self, wait_s: float) -> bool:
        """Handle the waiting orders, at most ``batch_groups``. Returns whether there was one."""
        with self.account.part("back_pressure"):
            if self.wiring.give_way():
                time.sleep(min(wait_s, GIVE_WAY_S))
                return False
            deliveries = self.wiring.work.take(self.batch_groups, wait_s)
        orders = [delivery for delivery in deliveries if self._acceptable(delivery)]
        for _, alike in groupby(
            orders, key=lambda delivery: (_order(delivery).version, id(self._sampling_of(delivery)))
        ):
            self._handle(list(alike))
        return bool(deliveries)

    def _sampling_of(self, delivery: Delivery) -> Sampling:
        item = _order(delivery)
        return self._heldout.get(item.task, self._sampling) if item.purpose is Purpose.EVAL else self._sampling

    def _acceptable(self, delivery: Delivery) -> bool:
        """Whether to sample the order; an order that is not acceptable is ended as failed here."""
        item = _order(delivery)
        self._count_attempt(delivery.attempt)
        if item.fingerprint != self.fingerprint:
            self._give_up(delivery, f"made for recipe {item.fingerprint}, this actor runs {self.fingerprint}")
            return False
        if delivery.attempt > MAX_ATTEMPTS:
            self._give_up(delivery, f"{MAX_ATTEMPTS} attempts ended without a result")
            return False
        return True

    def _handle(self, orders: Sequence[Delivery]) -> None:
        """Sample orders that have the same version (None for the newest) and the same sampler."""
        sampling, version = self._sampling_of(orders[0]), _order(orders[0]).version
        ready = True
        with self.account.part("weights"):
            try:
                if version is None:
                    ready = self._await_newest()
                else:
                    self._load(version)
            except WeightsLost as error:
                for delivery in orders:
                    self._give_up(delivery, f"its weights are lost: {error}")
                return
        if not ready:
            for delivery in orders:
                self.wiring.work.hand_back(delivery)
            return
        started = time.monotonic()
        with self.account.part("compute"):
            chain, cond = self._draw(sampling, [_order(delivery) for delivery in orders])
            media = sampling.policy.decode(chain.x0, cond)
        sampling_s = (time.monotonic() - started) / len(orders)
        first = 0
        for delivery in orders:
            rows = slice(first, first + _order(delivery).num_samples)
            first = rows.stop
            with self.account.part("data"):
                self._finish(delivery, chain, rows, media_rows(media, rows), sampling_s)

    def _finish(self, delivery: Delivery, chain: Chain, rows: slice, media: Media, sampling_s: float) -> None:
        item = _order(delivery)
        try:
            trajectory = chain.take(rows, item.record, self.storage)
            self._publish(item, delivery.attempt, trajectory, media, sampling_s)
        except (SamplingFailed, BlobTooLarge) as error:
            self._give_up(delivery, str(error))
            return
        self.wiring.work.ack(delivery)
        self.wiring.meter.add(metrics.SAMPLES, item.num_samples)
        self.wiring.meter.add(metrics.SAMPLING_S, sampling_s)

    def _await_newest(self) -> bool:
        """Load the newest version, and wait for the learner to publish one. Returns False when told to stop."""
        while not self._stopping():
            try:
                version = self.wiring.weights.latest()
                if version < 0:
                    raise WeightsLost("no version is published")
                self._load(version)
                return True
            except WeightsLost as error:
                log.info("waiting for weights: %s", error)
                time.sleep(WEIGHTS_WAIT_S)
        return False

    def _load(self, version: int) -> None:
        """Load a version into the policy and check its canary. Raises `WeightsLost` when the version has been dropped."""
        if version == self.version:
            return
        started = time.monotonic()
        published = self.wiring.weights.load(version, self.policy.trainable)
        if published is not None:
            self._check(published, version)
        self.version = version
        self.wiring.meter.set(metrics.WEIGHT_VERSION, version, role=self.role)
        self.wiring.meter.add(metrics.WEIGHT_SYNC_S, time.monotonic() - started, role=self.role)

    def _check(self, published: Canary, version: int) -> None:
        assert self._first_condition is not None, "an actor samples, so its run has a condition"
        value = canary(self.policy, self._first_condition, self.device)
        self.wiring.meter.set(metrics.CANARY, abs(value - published.value) / published.tolerance)
        if not abs(value - published.value) <= published.tolerance:
            raise WeightSyncFailed(
                f"after loading version {version} the canary is {value:.7f}, but the learner computed "
                f"{published.value:.7f} (tolerance {published.tolerance:g}): the weights did not take effect here; "
                "check that actor and learner build the same policy"
            )

    def _draw(self, sampling: Sampling, items: Sequence[WorkItem]) -> tuple[Chain, Conditioning]:
        """Draw all samples of the orders, `batch_samples` at a time. Returns their chains and their conditions."""
        prompts = [prompt for item in items for prompt in item.asked]
        repeats = [item.samples_per_prompt for item in items for _ in item.prompts]
        rows = [row for row, repeat in enumerate(repeats) for _ in range(repeat)]
        cond, draws = sampling.policy.encode(prompts), _draws(items)
        batches = [slice(start, start + self.batch_samples) for start in range(0, len(rows), self.batch_samples)]
        chains = [
            sampling(
                conditioning.rows(cond, rows[batch]),
                draws.rows(batch),
                prompts=[prompts[row] for row in rows[batch]],
                record=sorted({step for item in items for step in item.record}),
                storage=self.storage,
            )
            for batch in batches
        ]
        return chains[0] if len(chains) == 1 else Chain.joined(chains), conditioning.rows(cond, rows)

    def _publish(self, item: WorkItem, attempt: int, trajectory: Trajectory, media: Media, sampling_s: float) -> None:
        stem = f"{item.epoch}.{item.purpose}.{item.group}.{attempt}.{self.name}"
        media_ref = self._store_media(f"{stem}/media", media)
        latents = None
        if item.keep_latents:
            latents = self._store(f"{stem}/latents", {"x0": trajectory.x0.to(self.storage)})["x0"]
        transitions = None
        if trajectory.recording is not None:
            transitions = self._store_recording(f"{stem}/steps", trajectory.recording)
        self.wiring.rollouts.put(
            RolloutGroup(
                epoch=item.epoch,
                group=item.group,
                attempt=attempt,
                purpose=item.purpose,
                task=item.task,
                rewards=item.rewards,
                version=self.version,
                prompts=item.prompts,
                samples_per_prompt=item.samples_per_prompt,
                fingerprint=self.fingerprint,
                media=media_ref,
                latents=latents,
                transitions=transitions,
                worker=self.name,
                sampling_s=sampling_s,
                fields=item.fields,
            )
        )

    def _store_media(self, blob: str, media: Media) -> MediaRef:
        blobs, ref = pack(media, blob)
        for name, parts in blobs:
            self.wiring.blobs.put(name, parts)
        self.wiring.meter.add(metrics.BLOB_WRITTEN_BYTES, ref.nbytes, role=self.role)
        return ref

    def _store(self, blob: str, parts: dict[str, Tensor]) -> dict[str, TensorRef]:
        data, refs = tensors.pack(blob, parts)
        self.wiring.blobs.put(blob, data)
        self.wiring.meter.add(metrics.BLOB_WRITTEN_BYTES, sum(ref.nbytes for ref in refs.values()), role=self.role)
        return refs

    def _store_recording(self, blob: str, recording: Recording) -> Transitions:
        refs = self._store(blob, {"states": recording.states, "log_probs": recording.log_probs})
        return Transitions(
            steps=recording.steps,
            times=recording.times,
            next_times=recording.next_times,
            before=recording.before,
            after=recording.after,
            states=refs["states"],
            log_probs=refs["log_probs"],
        )

    def _count_attempt(self, attempt: int) -> None:
        """Count a redelivery, and a first attempt as 0, because a monitoring system sees no rise in a first value above 0."""
        stream = "work" if self.role == "actor" else "evaluation"
        self.wiring.meter.add(metrics.REDELIVERIES, float(attempt > 1), stream=stream)

    def _give_up(self, delivery: Delivery, reason: str) -> None:
        item = _order(delivery)
        log.warning("giving up on group %d: %s", item.group, reason)
        failed = GroupFailed(
            epoch=item.epoch,
            group=item.group,
            attempt=delivery.attempt,
            purpose=item.purpose,
            stage=Stage.SAMPLE,
            reason=reason,
        )
        self.wiring.failures.put(failed)
        self.wiring.work.bury(delivery, reason)


def _draws(items: Sequence[WorkItem]) -> Draws:
    parts = [
        draws_of(item.seed, item.purpose, item.draw, prompts=len(item.prompts), samples=item.samples_per_prompt)
        for item in items
    ]
    return Draws([one for part in parts for one in part.own], [one for part in parts for one in part.siblings])


def _order(delivery: Delivery) -> WorkItem:
    assert isinstance(delivery.message, WorkItem), delivery.message
    return delivery.message
