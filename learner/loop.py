"""The learner: gather, learn, publish, release. Every rank runs this loop; rank 0 alone talks to the other roles.

| step    | consumes                   | waits for               | unblocks                          |
|---------|----------------------------|-------------------------|-----------------------------------|
| gather  | measured groups, in order  | rollouts and rewards    | -                                 |
| learn   | recorded steps or latents  | the other ranks         | -                                 |
| publish | parameters                 | -                       | actors, at their next claim       |
| settle  | slots of the iteration     | publish                 | the feeder: new orders            |
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist

from drover.common import metrics
from drover.common.diffusion.canary import canary
from drover.common.errors import ConfigError
from drover.common.metrics import Account
from drover.common.protocols import BlobStore, Canary, Meter
from drover.learner import fsdp, ranks
from drover.learner.batches import divide, open_fetcher, terms_of
from drover.learner.files.from_files import FileExamples, FromFiles
from drover.learner.head import HeadSpec, Lead
from drover.learner.intake.evaluation import Due, EvaluationSpec
from drover.learner.intake.tasks import Order
from drover.learner.objective import Models, Objective
from drover.learner.overoptimisation import Watch
from drover.learner.ranks import Iteration, Stop
from drover.learner.reference import HeldReference
from drover.learner.reporting.reporter import Updated
from drover.learner.saving.checkpoint import Checkpoints
from drover.learner.saving.checkpoint_files import read_state
from drover.learner.saving.progress import Progress
from drover.learner.spec import By, OptimizerSpec
from drover.learner.step import Part, Stepper, StepStats


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSpec:
    """The learner's settings; `deploy.config.RunConfig` sets them. Counts are per iteration."""

    iterations: int
    groups: int  # 0: the run learns from files alone
    updates: int  # optimiser steps an iteration is divided into
    updates_by: By  # whether each of them gets some of the samples, or some of the recorded steps
    reduction: Literal["mean", "sum"]  # over an optimiser step's terms
    batch_size: int  # rows of a micro-batch
    max_lag: int
    order: Order
    evaluation: tuple[EvaluationSpec, ...]
    evaluate_every: int  # 0: only before and after
    watch: Watch | None
    optimizer: OptimizerSpec
    files: FromFiles | None
    checkpoint_every: int
    first_condition: str | None  # the condition of the canary; None where no actor samples
    canary_tolerance: float
    stall_s: float

    def __post_init__(self) -> None:
        for name in ("iterations", "updates", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.evaluate_every < 0 or (self.watch is not None and not self.evaluate_every):
            raise ConfigError(f"evaluate_every must be 0 or more, and at least 1 to watch; got {self.evaluate_every}")
        if self.max_lag < 0:
            raise ConfigError(f"max_lag must be 0 (strictly on-policy) or more, got {self.max_lag}")

    @property
    def head(self) -> HeadSpec:
        return HeadSpec(
            iterations=self.iterations, groups=self.groups, evaluate_every=self.evaluate_every, watch=self.watch
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerWiring:
    """The connections of a rank to storage, other roles and metrics."""

    lead: Lead  # `Head` on rank 0, `Follower` on the others
    blobs: BlobStore
    checkpoints: Checkpoints
    recipe: Mapping[str, str]  # the run's parameters, field by field: kept with every checkpoint
    meter: Meter
    account: Account


class Learner:
    """Runs the learner's loop on one rank."""

    def __init__(
        self,
        spec: LearnerSpec,
        models: Models,
        objective: Objective,
        wiring: LearnerWiring,
        *,
        device: str,
        reference: HeldReference | None = None,
    ) -> None:
        """The policy of ``models`` must be sharded. ``reference`` holds the reference that ``models`` names."""
        self._spec, self._models, self._objective, self._wiring = spec, models, objective, wiring
        self._device, self._reference, self._lead = device, reference, wiring.lead
        self._module = models.policy.trainable
        self._stepper = Stepper(models, spec.optimizer)
        self._fetcher = open_fetcher(
            objective, models, wiring.blobs, seed=spec.order.seed, device=device, batch_size=spec.batch_size
        )
        self._files = _file_examples(spec, models)
        self.progress = Progress()
        self._cut_off: list[Due] = []  # evaluations that were under way when the checkpoint was made
        self._published = -1  # the newest version
        self._saved = -1  # the update of the newest checkpoint

    def resume(self, folder: Path) -> None:
        """Continue from a checkpoint. Every rank must call this before `run`."""
        state = read_state(folder)
        self._cut_off = [Due(**due) for due in state["evaluations"]]
        start = Progress()
        if state["progress"]["update"] and any(due.moment == "before" for due in self._cut_off):
            start = self._evaluate_start()
        self._wiring.checkpoints.load(folder, self._module, self._stepper.optimizer)
        if self._reference is not None:
            self._reference.resumed(self._stepper.optimizer)
        self._stepper.steps = state["optimizer_steps"]
        self.progress = Progress.restored(state["progress"])
        if start.verdict.first is not None:
            self.progress.verdict = start.verdict
        self._saved = self.progress.update
        self._lead.restore(state)

    def tell(self, text: str) -> None:
        """Have rank 0 report something that a person should know."""
        self._lead.tell(text, self.progress)

    def run(self) -> bool:
        """Learn until the last iteration or a request to stop. Returns whether the run finished."""
        try:
            return self._run()
        finally:
            self._wiring.checkpoints.close()

    def _run(self) -> bool:
        self._new_version(self.progress.version)
        self._publish()
        self._lead.begin(self.progress, self._cut_off)
        finished = True
        while self.progress.update < self._spec.iterations:
            iteration = ranks.share(self._lead.gather(self.progress))
            if isinstance(iteration, Stop):
                finished = iteration.reason == "overoptimised"
                break
            self._iterate(iteration)
        self._checkpoint()
        with self._wiring.account.part("checkpoint"):
            self._wiring.checkpoints.finish()
        if finished and self._stepper.average():
            self.progress.version += 1
            self._publish()
        with fsdp.gathered(self._module) as weights:
            self._lead.conclude(self.progress, finished, weights)
        return finished

    # ------------------------------------------------------------------------------------ one iteration

    def _iterate(self, iteration: Iteration) -> None:
        started = time.monotonic()
        self._wiring.checkpoints.check()
        with self._wiring.account.part("compute"):
            stats = self._learn(iteration)
            files = self._learn_from_files()
        learned = time.monotonic()
        lags = [self.progress.version - group.version for group in iteration.groups]
        self.progress.update += 1
        self.progress.samples += sum(group.num_samples for group in iteration.groups)
        self.progress.max_lag_seen = max(self.progress.max_lag_seen, *lags, 0)
        if self._reference is not None:
            self._reference.after_iteration(self.progress.update, self._stepper.optimizer)
        if stats or files:
            self.progress.version += 1
            self._publish()
        times = {"learn_s": learned - started, "weights_sync_s": time.monotonic() - learned}
        with self._wiring.account.part("data"):
            self._lead.settle(iteration, self.progress, Updated(stats, files, lags, times))
        if self.progress.update % self._spec.checkpoint_every == 0:
            self._checkpoint()

    def _learn(self, iteration: Iteration) -> list[StepStats]:
        """Make the optimiser steps of one iteration; none when all its examples have weight 0."""
        if iteration.credit is None:
            return self._learn_alone()
        turns = terms_of(iteration, self._objective)
        shares = divide(
            iteration.credit,
            turns=turns,
            updates=self._spec.updates,
            ranks=dist.get_world_size(),
            rank=dist.get_rank(),
            batch_size=self._spec.batch_size,
            by=self._spec.updates_by,
        )
        count = iteration.credit.terms * turns / max(1, len(shares)) if self._spec.reduction == "mean" else 1.0
        read = self._fetcher.bytes_read
        stats = []
        for share in shares:
            batches = self._fetcher.batches(iteration, share, self._stepper.steps)
            stats.append(self._step([*self._beside(), Part(self._objective, batches, count)]))
        self._wiring.meter.add(metrics.BLOB_READ_BYTES, self._fetcher.bytes_read - read, role="learner")
        return stats

    def _learn_alone(self) -> list[StepStats]:
        """Make the optimiser steps of an iteration that learns from files alone."""
        assert self._files is not None
        return [self._step([self._files.part(self._stepper.steps)]) for _ in range(self._spec.updates)]

    def _step(self, parts: list[Part]) -> StepStats:
        started = time.monotonic()
        stats = self._stepper.step(parts)
        if self._reference is not None:
            self._reference.after_step(self._stepper.optimizer)
        self._wiring.meter.add(metrics.OPTIMIZER_STEP_S, time.monotonic() - started)
        return stats

    def _beside(self) -> list[Part]:
        """The examples from files as a part of the next optimiser step, where the recipe adds them to every step."""
        files = self._files
        return [files.part(self._stepper.steps)] if files is not None and files.spec.when == "step" else []

    def _learn_from_files(self) -> StepStats | None:
        """Make the step on files at the end of a round of tasks, where the recipe gives files a step of their own."""
        files, tasks = self._files, len(self._spec.order.tasks)
        if files is None or files.spec.when != "round":
            return None
        round_, task = divmod(self.progress.update, tasks)
        return self._stepper.step([files.part(round_)], scheduled=False) if task == tasks - 1 else None

    # ---------------------------------------------------------------------------------- weights, state

    def _new_version(self, least: int) -> None:
        """Choose a version that no other weights had, before or after a restart: ``least`` or more."""
        self.progress.version = max(least, self._lead.floor + 1, self._published + 1)

    def _publish(self) -> None:
        started = time.monotonic()
        self._published = self.progress.version
        with self._wiring.account.part("weights"):
            proof = self._canary()
            with fsdp.gathered(self._module) as weights:
                self._lead.publish(self.progress.version, weights, proof)
        self._wiring.meter.set(metrics.WEIGHT_VERSION, self.progress.version, role="learner")
        self._wiring.meter.add(metrics.WEIGHT_SYNC_S, time.monotonic() - started, role="learner")

    def _canary(self) -> Canary | None:
        condition = self._spec.first_condition
        if condition is None:
            return None
        return Canary(value=canary(self._models.policy, condition, self._device), tolerance=self._spec.canary_tolerance)

    def _checkpoint(self) -> None:
        """Begin a checkpoint, unless one of this update exists: orders issued since then follow from it."""
        progress = self.progress
        if progress.update == self._saved:
            return
        state: dict[str, Any] = {"recipe": dict(self._wiring.recipe), "optimizer_steps": self._stepper.steps}
        state |= {"progress": progress.saved(), **self._lead.saved()}
        with self._wiring.account.part("checkpoint"):
            self._wiring.checkpoints.save(progress.update, self._module, self._stepper.optimizer, state)
        self._saved = progress.update

    def _evaluate_start(self) -> Progress:
        """Repeat the evaluation before the run, which was cut off. The weights are still those of the start."""
        self._new_version(0)
        self._publish()
        self._lead.evaluate_now(self.progress)
        return self.progress


def _file_examples(spec: LearnerSpec, models: Models) -> FileExamples | None:
    if spec.files is None:
        return None
    return FileExamples(spec.files, models, seed=spec.order.seed, rank=dist.get_rank(), ranks=dist.get_world_size())
