"""The learner: gather, learn, publish, release. Every rank runs this loop; rank 0 alone talks to the other roles.

| step    | consumes                   | waits for               | unblocks                          |
|---------|----------------------------|-------------------------|-----------------------------------|
| gather  | measured groups, in order  | rollouts and rewards    | -                                 |
| learn   | recorded steps (blobs)     | the other ranks         | -                                 |
| publish | parameters                 | -                       | actors, at their next claim       |
| settle  | slots of what was learned  | publish                 | the feeder: new orders            |
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from common import metrics
from common.diffusion.canary import canary_log_prob
from common.errors import ConfigError, DroverError
from common.metrics import Account
from common.protocols import BlobStore, Canary, Kernel, Meter, Policy, WeightPublisher
from common.types import Ending, Report
from learner import fsdp, ranks
from learner.batcher import Fetcher, count_terms, divide
from learner.checkpoint import Checkpoints
from learner.evaluation import Evaluated, EvaluationSpec
from learner.examples import MeasuredGroup
from learner.feeder import Order
from learner.intake import Intake, LearnerStreams, rewards_by_name
from learner.objective import Objective
from learner.ranks import Iteration
from learner.step import OptimizerSpec, Stepper, StepStats

BLIND_ITERATIONS = 3  # this many in a row without one valid reward end the run with an error


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSpec:
    """What the learner does; see `deploy.config.RunConfig` for who sets it. Counts are per iteration."""

    iterations: int
    groups: int
    updates: int  # optimiser steps an iteration is divided into
    batch_size: int  # recorded steps per micro-batch
    max_lag: int
    order: Order
    evaluation: EvaluationSpec
    optimizer: OptimizerSpec
    checkpoint_every: int
    canary_tolerance: float
    stall_s: float

    def __post_init__(self) -> None:
        if min(self.iterations, self.groups, self.updates, self.batch_size, self.checkpoint_every) < 1 or self.max_lag < 0:
            raise ConfigError(
                "iterations, groups, updates, batch_size and checkpoint_every must be at least 1 and max_lag at least 0; "
                f"got {self.iterations}, {self.groups}, {self.updates}, {self.batch_size}, {self.checkpoint_every}, {self.max_lag}"
            )


@dataclass(slots=True)
class Progress:
    """Where the run stands; what a checkpoint holds besides tensors."""

    update: int = 0
    version: int = 0
    samples: int = 0
    max_lag_seen: int = 0
    trained_s: float = 0.0  # learner seconds before this life
    blind: int = field(default=0, compare=False)  # iterations in a row without a valid reward


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerWiring:
    """What a rank is connected to. ``intake``, ``streams`` and ``publisher`` belong to rank 0 alone."""

    blobs: BlobStore
    checkpoints: Checkpoints
    meter: Meter
    account: Account
    intake: Intake | None
    streams: LearnerStreams | None
    publisher: WeightPublisher | None
    finish: Callable[[Mapping[str, Tensor]], None]  # called on rank 0 with the final weights
    stopping: Callable[[], bool]


class Learner:
    """One rank."""

    def __init__(
        self, spec: LearnerSpec, policy: Policy, kernel: Kernel, objective: Objective, wiring: LearnerWiring, *, device: str
    ) -> None:
        self._spec, self._policy, self._kernel, self._objective, self._wiring = spec, policy, kernel, objective, wiring
        self._device = device
        fsdp.shard(policy.trainable, device)
        self._stepper = Stepper(policy, kernel, objective, spec.optimizer)
        self._fetcher = Fetcher(policy, kernel, wiring.blobs, device=device, batch_size=spec.batch_size)
        self.progress = Progress()
        self._started = time.monotonic()
        self._gathered: list[MeasuredGroup] = []

    def resume(self, folder: Path) -> None:
        """Continue from a checkpoint. Before `run`, on every rank."""
        state = self._wiring.checkpoints.load(folder, self._policy.trainable, self._stepper.optimizer)
        self._stepper.steps = state["optimizer_steps"]
        self.progress = Progress(**state["progress"])
        if self._wiring.intake is not None:
            self._wiring.intake.feeder.next_group = state["next_group"]
            self._wiring.intake.ledger.restore(state["ledger"])

    def run(self) -> bool:
        """Learn to the end, or until told to stop; whether the end was reached."""
        self._publish()
        if self.progress.update == 0:
            self._evaluate("before")
        while self.progress.update < self._spec.iterations:
            iteration = ranks.share(self._gather() if self._wiring.intake is not None else None)
            if iteration.stop:
                break
            self._iterate(iteration)
        finished = self.progress.update >= self._spec.iterations
        if not finished or self.progress.update % self._spec.checkpoint_every:
            self._checkpoint()
        weights = self._weights()
        if self._wiring.intake is not None:
            self._conclude(finished, weights)
        return finished

    # ------------------------------------------------------------------------------------ one iteration

    def _gather(self) -> Iteration:
        """Rank 0: the next groups with their credit."""
        intake, progress = self._wiring.intake, self.progress
        assert intake is not None
        total = self._spec.iterations * self._spec.groups
        groups = intake.collect(self._spec.groups, total=total, version=progress.version, stopping=self._wiring.stopping)
        if groups is None:
            return Iteration(stop=True)
        self._gathered = groups
        credits = self._objective.credit(groups)
        progress.blind = 0 if any(credit.counted.any() for credit in credits) else progress.blind + 1
        if progress.blind >= BLIND_ITERATIONS:
            raise DroverError(
                f"no sample had a valid reward for {BLIND_ITERATIONS} iterations; masked so far: "
                f"{ {f'{name}: {reason}': n for (name, reason), n in intake.assembler.masked.items()} }"
            )
        return Iteration(tuple(group.rollout for group in groups), tuple(credits))

    def _iterate(self, iteration: Iteration) -> None:
        started = time.monotonic()
        with self._wiring.account.part("compute"):
            stats = self._learn(iteration)
        learned = time.monotonic()
        lags = [self.progress.version - group.version for group in iteration.groups]
        self.progress.update += 1
        self.progress.samples += sum(group.num_samples for group in iteration.groups)
        self.progress.max_lag_seen = max(self.progress.max_lag_seen, *lags)
        if stats:
            self.progress.version += 1
            self._publish()
        published = time.monotonic()
        if self._wiring.intake is not None:
            self._settle(iteration)
            self._report_update(stats, lags, learn_s=learned - started, publish_s=published - learned)
            self._gathered = []
        if self.progress.update % self._spec.checkpoint_every == 0:
            self._checkpoint()

    def _learn(self, iteration: Iteration) -> list[StepStats]:
        """The optimiser steps of one iteration; none when no sample has anything to teach."""
        shares = divide(
            iteration,
            updates=self._spec.updates,
            ranks=dist.get_world_size(),
            rank=dist.get_rank(),
            batch_size=self._spec.batch_size,
        )
        count = count_terms(iteration.credits, iteration.groups) / max(1, len(shares))
        return [
            self._stepper.step(self._fetcher.batches(iteration, share), num_batches=share.num_batches, count=count)
            for share in shares
        ]

    def _settle(self, iteration: Iteration) -> None:
        """Every group ends; its slot is free only now that the new weights are visible."""
        intake = self._wiring.intake
        assert intake is not None
        for group, credit in zip(iteration.groups, iteration.credits, strict=True):
            intake.end(group.group, Ending.EMPTY if credit.empty else Ending.TRAINED)
        intake.release(len(iteration.groups))

    # ---------------------------------------------------------------------------------- weights, state

    def _weights(self) -> dict[str, Tensor]:
        """The whole parameters, on every rank."""
        return {name: fsdp.full(parameter) for name, parameter in fsdp.trainable(self._policy.trainable).items()}

    def _publish(self) -> None:
        started = time.monotonic()
        with self._wiring.account.part("weights"):
            value = canary_log_prob(self._policy, self._kernel, self._device)
            fsdp.reshard(self._policy.trainable)
            weights = self._weights()
            if self._wiring.publisher is not None:
                canary = Canary(value=value, tolerance=self._spec.canary_tolerance)
                self._wiring.publisher.publish(self.progress.version, weights, canary)
        self._wiring.meter.set(metrics.WEIGHT_VERSION, self.progress.version, role="learner")
        self._wiring.meter.add(metrics.WEIGHT_SYNC_S, time.monotonic() - started, role="learner")

    def _checkpoint(self) -> None:
        intake, progress = self._wiring.intake, self.progress
        state: dict[str, Any] = {"optimizer_steps": self._stepper.steps}
        state["progress"] = {
            "update": progress.update,
            "version": progress.version,
            "samples": progress.samples,
            "max_lag_seen": progress.max_lag_seen,
            "trained_s": progress.trained_s + time.monotonic() - self._started,
        }
        if intake is not None:
            state |= {"next_group": intake.first_open, "ledger": intake.ledger.as_dict()}
        with self._wiring.account.part("other"):
            self._wiring.checkpoints.save(progress.update, self._policy.trainable, self._stepper.optimizer, state)

    # ----------------------------------------------------------------------------- rank 0: what is told

    def _evaluate(self, moment: str) -> None:
        """Start the held-out evaluation; its result is reported when it is there."""
        if self._wiring.intake is not None:
            self._moment = moment
            self._wiring.intake.evaluation.issue()

    def _report_evaluation(self) -> None:
        intake = self._wiring.intake
        assert intake is not None
        if intake.evaluation.running and intake.evaluation.done:
            found = intake.evaluation.collect()
            self._send("eval", found.scalars() | {"update": float(self.progress.update)}, self._moment, found)

    def _report_update(self, stats: list[StepStats], lags: list[int], *, learn_s: float, publish_s: float) -> None:
        scalars = rewards_by_name(self._gathered)
        scalars |= {
            "update": float(self.progress.update),
            "updates_total": float(self._spec.iterations),
            "samples": float(self.progress.samples),
            "lag_max": float(max(lags)),
            "lag_mean": sum(lags) / len(lags),
            "max_lag": float(self._spec.max_lag),
            "learn_s": learn_s,
            "weights_sync_s": publish_s,
        }
        if stats:
            first, last = stats[0], stats[-1]
            scalars |= {f"{name}_first": first.watched[name] for name in ("ratio", "clip_fraction")}
            scalars |= last.watched | {"loss": last.loss, "grad_norm": first.grad_norm}
        self._set_gauges(scalars)
        self._send("update", scalars)
        self._report_evaluation()

    def _conclude(self, finished: bool, weights: Mapping[str, Tensor]) -> None:
        """Wait for what is still being evaluated, evaluate the result, hand over the weights."""
        intake = self._wiring.intake
        assert intake is not None
        if finished:
            if intake.evaluation.running:
                intake.await_evaluation()
                self._report_evaluation()
            self._evaluate("after")
            intake.await_evaluation()
            self._report_evaluation()
        self._wiring.finish(weights)
        scalars = {"samples": float(self.progress.samples), "max_lag_seen": float(self.progress.max_lag_seen)}
        self._send("end", scalars | {"update": float(self.progress.update)}, "finished" if finished else "stopped")

    def _send(self, kind: str, scalars: dict[str, float], text: str = "", found: Evaluated | None = None) -> None:
        intake, streams = self._wiring.intake, self._wiring.streams
        assert intake is not None and streams is not None
        scalars |= {f"ledger/{name}": float(count) for name, count in intake.ledger.as_dict().items()}
        scalars |= {f"account/learner/{part}": seconds for part, seconds in self._wiring.account.seconds().items()}
        for name, stream in (("rollouts", streams.rollouts), ("measurements", streams.measurements)):
            scalars[f"queue/{name}/backlog"], scalars[f"queue/{name}/age_s"] = map(float, stream.backlog())
        streams.reports.put(
            Report(
                kind=kind,
                at_s=self.progress.trained_s + time.monotonic() - self._started,
                version=self.progress.version,
                scalars=scalars,
                text=text,
                prompts=() if found is None else found.prompts,
                media=() if found is None else found.media,
            )
        )

    def _set_gauges(self, scalars: Mapping[str, float]) -> None:
        meter = self._wiring.meter
        meter.add(metrics.UPDATES)
        meter.set(metrics.LAG, scalars["lag_max"])
        gauges = {"ratio_first": metrics.RATIO_FIRST, "clip_fraction": metrics.CLIP_FRACTION}
        gauges |= {"grad_norm": metrics.GRAD_NORM, "loss": metrics.LOSS}
        for name, metric in gauges.items():
            if name in scalars:
                meter.set(metric, scalars[name])
        for name, value in scalars.items():
            if name.startswith("reward/") and name.endswith("/mean"):
                meter.set(metrics.REWARD_MEAN, value, reward=name.split("/")[1])
