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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from torch import Tensor

from drover.common import metrics
from drover.common.diffusion.canary import canary
from drover.common.errors import ConfigError, DroverError
from drover.common.metrics import Account
from drover.common.protocols import BlobStore, Canary, Kernel, Meter, Policy, WeightPublisher
from drover.common.types import Ending
from drover.learner import fsdp, ranks
from drover.learner.batches import By, Fetcher, count_terms, divide
from drover.learner.examples import MeasuredGroup
from drover.learner.files.pretraining import Pretraining, PretrainingLoss
from drover.learner.intake.evaluation import Due, EvaluationSpec
from drover.learner.intake.intake import Intake, LearnerStreams
from drover.learner.intake.tasks import Order
from drover.learner.objective import Objective
from drover.learner.overoptimisation import Watch
from drover.learner.ranks import Iteration
from drover.learner.reporting.reporter import Reporter
from drover.learner.saving.checkpoint import Checkpoints
from drover.learner.saving.checkpoint_files import read_state
from drover.learner.saving.progress import Progress
from drover.learner.step import OptimizerSpec, Stepper, StepStats

BLIND_ITERATIONS = 3  # this many in a row without one valid reward end the run with an error


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSpec:
    """What the learner does; see `drover.deploy.config.RunConfig` for who sets it. Counts are per iteration."""

    iterations: int
    groups: int
    updates: int  # optimiser steps an iteration is divided into
    updates_by: By  # what each of them has a part of
    reduction: Literal["mean", "sum"]  # over an optimiser step's terms
    batch_size: int  # recorded steps per micro-batch
    max_lag: int
    order: Order
    evaluation: tuple[EvaluationSpec, ...]
    evaluate_every: int  # 0: only before and after
    watch: Watch | None
    optimizer: OptimizerSpec
    pretraining: Pretraining | None
    checkpoint_every: int
    first_condition: str  # that the canary is taken under
    canary_tolerance: float
    stall_s: float

    def __post_init__(self) -> None:
        for name in ("iterations", "groups", "updates", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.evaluate_every < 0 or (self.watch is not None and not self.evaluate_every):
            raise ConfigError(f"evaluate_every must be 0 or more, and at least 1 to watch; got {self.evaluate_every}")
        if self.updates_by == "steps" and self.order.record.count % self.updates:
            raise ConfigError(f"{self.order.record.count} recorded steps do not divide into {self.updates} updates")
        if self.max_lag < 0:
            raise ConfigError(f"max_lag must be 0 (strictly on-policy) or more, got {self.max_lag}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerWiring:
    """What a rank is connected to. ``intake``, ``streams`` and ``publisher`` belong to rank 0 alone."""

    blobs: BlobStore
    checkpoints: Checkpoints
    recipe: Mapping[str, str]  # what is learned, field by field: kept with every checkpoint
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
        self,
        spec: LearnerSpec,
        policy: Policy,
        kernel: Kernel,
        objective: Objective,
        wiring: LearnerWiring,
        *,
        device: str,
    ) -> None:
        self._spec, self._policy, self._kernel, self._objective, self._wiring = spec, policy, kernel, objective, wiring
        self._device = device
        fsdp.shard(policy.trainable, device)
        self._stepper = Stepper(policy, kernel, objective, spec.optimizer)
        self._fetcher = Fetcher(policy, kernel, wiring.blobs, device=device, batch_size=spec.batch_size)
        self._pretraining = _pretraining(spec, policy)
        self.progress = Progress()
        self._reporter = _reporter(spec, wiring)
        self._gathered: list[MeasuredGroup] = []
        self._cut_off: list[Due] = []  # evaluations that were under way when the checkpoint was made
        self._published = -1  # the newest version
        self._saved = -1  # the update of the newest checkpoint

    def resume(self, folder: Path) -> None:
        """Continue from a checkpoint. Before `run`, on every rank."""
        state = read_state(folder)
        self._cut_off = [Due(**due) for due in state["evaluations"]]
        start = Progress()
        if state["progress"]["update"] and any(due.moment == "before" for due in self._cut_off):
            start = self._evaluate_start()
        self._wiring.checkpoints.load(folder, self._policy.trainable, self._stepper.optimizer)
        self._stepper.steps = state["optimizer_steps"]
        self.progress = Progress.restored(state["progress"])
        if start.verdict.first is not None:
            self.progress.verdict = start.verdict
        self._saved = self.progress.update
        if self._wiring.intake is not None:
            self._wiring.intake.feeder.restore(state["feeder"])
            self._wiring.intake.ledger.restore(state["ledger"])

    def tell(self, text: str) -> None:
        """Have rank 0 say something that a person should know."""
        if self._reporter is not None:
            self._reporter.event(text, self.progress)

    def run(self) -> bool:
        """Learn to the end, or until told to stop; whether the end was reached."""
        try:
            return self._run()
        finally:
            self._wiring.checkpoints.close()

    def _run(self) -> bool:
        self._new_version(self.progress.version)
        self._publish()
        if self._reporter is not None:
            self._begin_evaluating(self._reporter)
        finished = True
        while self.progress.update < self._spec.iterations:
            iteration = ranks.share(self._gather() if self._wiring.intake is not None else None)
            if iteration.stop:
                finished = iteration.stop == "overoptimised"
                break
            self._iterate(iteration)
        self._checkpoint()
        with self._wiring.account.part("checkpoint"):
            self._wiring.checkpoints.finish()
        if finished and self._stepper.average():
            self.progress.version += 1
            self._publish()
        with fsdp.gathered(self._policy.trainable) as weights:
            if self._reporter is not None:
                self._conclude(self._reporter, finished, weights)
        return finished

    # ------------------------------------------------------------------------------------ one iteration

    def _gather(self) -> Iteration:
        """Rank 0: the next groups with their credit."""
        intake, progress = self._wiring.intake, self.progress
        assert intake is not None
        if self._reporter is not None and self._reporter.overoptimised(progress):
            self._reporter.say_overoptimised(progress)
            return Iteration(stop="overoptimised")
        total = self._spec.iterations * self._spec.groups
        groups = intake.collect(
            self._spec.groups, total=total, version=progress.version, stopping=self._wiring.stopping
        )
        if groups is None:
            return Iteration(stop="asked")
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
        self._wiring.checkpoints.check()
        with self._wiring.account.part("compute"):
            stats = self._learn(iteration)
            beside = self._pretrain()
        learned = time.monotonic()
        lags = [self.progress.version - group.version for group in iteration.groups]
        self.progress.update += 1
        self.progress.samples += sum(group.num_samples for group in iteration.groups)
        self.progress.max_lag_seen = max(self.progress.max_lag_seen, *lags)
        if stats or beside:
            self.progress.version += 1
            self._publish()
        published = time.monotonic()
        if self._reporter is not None:
            with self._wiring.account.part("data"):
                self._settle(iteration)
                times = {"learn_s": learned - started, "weights_sync_s": published - learned}
                self._reporter.update(self.progress, self._gathered, stats, beside, lags, times)
                self._evaluate(self._reporter)
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
            by=self._spec.updates_by,
        )
        terms = count_terms(iteration.credits, iteration.groups) / max(1, len(shares))
        stats, read = [], self._fetcher.bytes_read
        for share in shares:
            started = time.monotonic()
            stats.append(
                self._stepper.step(
                    self._fetcher.batches(iteration, share),
                    num_batches=share.num_batches,
                    count=terms if self._spec.reduction == "mean" else 1.0,
                    beside=self._beside(),
                )
            )
            self._wiring.meter.add(metrics.OPTIMIZER_STEP_S, time.monotonic() - started)
        self._wiring.meter.add(metrics.BLOB_READ_BYTES, self._fetcher.bytes_read - read, role="learner")
        return stats

    def _beside(self) -> Callable[[], Tensor] | None:
        """The pretraining loss of the next optimiser step, where it is a part of every one."""
        spec, number = self._spec.pretraining, self._stepper.steps
        if spec is None or not spec.combined:
            return None
        loss = self._pretraining
        assert loss is not None
        return lambda: loss(number)

    def _pretrain(self) -> StepStats | None:
        """The step on real pictures that ends a round of tasks, where it is a step of its own."""
        spec, tasks = self._spec.pretraining, len(self._spec.order.tasks)
        round_, task = divmod(self.progress.update, tasks)
        if spec is None or spec.combined or task < tasks - 1:
            return None
        loss = self._pretraining
        assert loss is not None
        return self._stepper.step_beside(lambda: loss(round_))

    def _evaluate(self, reporter: Reporter) -> None:
        """Collect an evaluation that is there; start the next where one is due."""
        reporter.evaluation(self.progress)
        every = self._spec.evaluate_every
        if every and self.progress.update % every == 0 and self.progress.update < self._spec.iterations:
            reporter.evaluate("during", self.progress)

    def _settle(self, iteration: Iteration) -> None:
        """Every group ends; its slot is free only now that the new weights are visible."""
        intake = self._wiring.intake
        assert intake is not None
        for group, credit in zip(iteration.groups, iteration.credits, strict=True):
            intake.end(group.group, Ending.EMPTY if credit.empty else Ending.TRAINED)
        intake.release(len(iteration.groups))

    # ---------------------------------------------------------------------------------- weights, state

    def _new_version(self, least: int) -> None:
        """Go on with a version that no other weights had, in this life or a former one."""
        floor = -1 if self._wiring.publisher is None else self._wiring.publisher.floor
        self.progress.version = max(least, floor + 1, self._published + 1)

    def _publish(self) -> None:
        started = time.monotonic()
        self._published = self.progress.version
        with self._wiring.account.part("weights"):
            value = canary(self._policy, self._spec.first_condition, self._device)
            with fsdp.gathered(self._policy.trainable) as weights:
                if self._wiring.publisher is not None:
                    proof = Canary(value=value, tolerance=self._spec.canary_tolerance)
                    self._wiring.publisher.publish(self.progress.version, weights, proof)
        self._wiring.meter.set(metrics.WEIGHT_VERSION, self.progress.version, role="learner")
        self._wiring.meter.add(metrics.WEIGHT_SYNC_S, time.monotonic() - started, role="learner")

    def _checkpoint(self) -> None:
        """Begin a checkpoint, unless there is one of this update: what was issued since then follows from it."""
        intake, progress = self._wiring.intake, self.progress
        if progress.update == self._saved:
            return
        state: dict[str, Any] = {"recipe": dict(self._wiring.recipe), "optimizer_steps": self._stepper.steps}
        state["progress"] = progress.saved()
        if intake is not None:
            state |= {"feeder": intake.feeder.saved(), "ledger": intake.ledger.as_dict()}
            state["evaluations"] = [asdict(due) for due in intake.evaluation.under_way]
        with self._wiring.account.part("checkpoint"):
            self._wiring.checkpoints.save(progress.update, self._policy.trainable, self._stepper.optimizer, state)
        self._saved = progress.update

    def _evaluate_start(self) -> Progress:
        """The evaluation before the run, which was cut off: of the weights that it starts with, as they are now."""
        self._new_version(0)
        self._publish()
        if self._reporter is not None and self._wiring.intake is not None:
            self._reporter.evaluate("before", self.progress)
            self._wiring.intake.await_evaluation()
            self._reporter.evaluation(self.progress)
        return self.progress

    def _begin_evaluating(self, reporter: Reporter) -> None:
        """The evaluation before the run, or again the one that a resumed run was cut off in."""
        if self.progress.update == 0:
            reporter.evaluate("before", self.progress)
        elif during := [due for due in self._cut_off if due.moment == "during"]:
            reporter.evaluate("during", self.progress)
            if during[-1].update != self.progress.update:
                reporter.event(
                    f"the evaluation of update {during[-1].update} was cut off, and its weights are gone: "
                    f"those of update {self.progress.update} are evaluated instead",
                    self.progress,
                )

    def _conclude(self, reporter: Reporter, finished: bool, weights: Mapping[str, Tensor]) -> None:
        """Rank 0: wait for what is still being evaluated, evaluate the result, hand over the weights."""
        intake = self._wiring.intake
        assert intake is not None
        if finished:
            reporter.evaluate("after", self.progress)
            while intake.evaluation.running:
                intake.await_evaluation()
                reporter.evaluation(self.progress)
            self._wiring.finish(weights)
        reporter.end(self.progress, "finished" if finished else "stopped")


def _reporter(spec: LearnerSpec, wiring: LearnerWiring) -> Reporter | None:
    if wiring.intake is None or wiring.streams is None:
        return None
    return Reporter(
        wiring.intake,
        wiring.streams,
        wiring.meter,
        wiring.account,
        updates_total=spec.iterations,
        max_lag=spec.max_lag,
        watch=spec.watch,
    )


def _pretraining(spec: LearnerSpec, policy: Policy) -> PretrainingLoss | None:
    if spec.pretraining is None:
        return None
    return PretrainingLoss(
        spec.pretraining, policy, seed=spec.order.seed, rank=dist.get_rank(), ranks=dist.get_world_size()
    )
