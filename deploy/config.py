"""`RunConfig`, the whole description of one run, which recipes return. Building one checks it, before any process starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal, get_args

from drover.common.errors import ConfigError
from drover.common.policies.model import Model
from drover.common.protocols import Reward, Sampler
from drover.common.transport.broker import BLOB_LIFETIME_S
from drover.deploy.config_checks import (
    check_measured,
    check_method,
    check_names,
    check_parts,
    check_sources,
    check_watch,
)
from drover.learner.examples import LatentBatch
from drover.learner.files.from_files import FromFiles
from drover.learner.intake.evaluation import EvaluationSpec
from drover.learner.intake.tasks import Order, RecordSteps, Task
from drover.learner.objective import Objective
from drover.learner.overoptimisation import Watch
from drover.learner.reference import Reference
from drover.learner.spec import By, OptimizerSpec

if TYPE_CHECKING:
    from drover.learner.loop import LearnerSpec

CHOICES: dict[str, tuple[str, ...]] = {
    "storage": ("float32", "float16"),
    "weights": ("float32", "bfloat16"),
    "reduction": ("mean", "sum"),
    "updates_by": get_args(By),
}
CANARY_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # by the dtype to which the weights or the products are rounded


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """The number of processes of each role, and the CPU threads of each process."""

    actors: int = 1
    """Rollout processes; 0 where a run learns from files alone and evaluates nothing."""
    evaluators: int = 0
    """Further actors that sample evaluations only, beside training; 0: the actors sample them."""
    actor_groups: int = 1
    """Prompts that an actor samples in one batch; with 1 the samples of a prompt do not depend on the other waiting orders."""
    actor_samples: int = 1024
    """Most samples that go through an actor's model at once; bounds its memory."""
    reward_servers: int = 1
    """Processes of each reward's pool."""
    reward_gpus: float = 0.0
    """GPUs of each reward process, also a fraction of one; 0: it computes on the CPU."""
    share_rewards: bool = False
    """Run all rewards without packages of their own in the same processes, which takes less memory."""
    reward_batch: int = 64
    """Most samples of one call of a reward; a group that is larger is scored alone."""
    reward_deadline_s: float = 0.0
    """Seconds after which a call of a reward is abandoned and its samples are masked; 0: no limit."""
    reward_loops: int = 1
    """Scoring loops in each process of a reward; more than one suits a reward that waits rather than computes."""
    learner_ranks: int = 1
    """FSDP ranks of the learner."""
    actor_threads: int = 1
    """CPU threads of each rollout process."""
    learner_threads: int = 1
    """CPU threads of each learner rank."""

    def __post_init__(self) -> None:
        counts = (self.actor_groups, self.actor_samples, self.reward_servers, self.reward_batch, self.reward_loops)
        sizes = (self.learner_ranks, self.actor_threads, self.learner_threads)
        if min(*counts, *sizes) < 1 or min(self.actors, self.evaluators, self.reward_gpus) < 0:
            raise ConfigError(f"every pool needs at least one process, one thread and one sample of a call, got {self}")
        if not (math.isfinite(self.reward_deadline_s) and self.reward_deadline_s >= 0):
            raise ConfigError(f"reward_deadline_s is seconds, or 0 for none; got {self.reward_deadline_s}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """The description of one run: its model, tasks, rewards and method, and the size of its service.

    An iteration samples ``groups`` groups of ``samples`` samples, one prompt each, all of one task, and learns from them
    in ``updates`` optimiser steps; the next is the next task's. Held-out prompts are evaluated before and after, and
    every ``evaluate_every`` iterations. ``max_lag`` is how many versions old the weights that sampled a group may be when
    it is trained; 0 is strictly on-policy. ``storage`` is the dtype of recorded states, ``weights`` of published
    parameters. Another worker takes over the orders of a dead one after ``lease_s`` seconds. If nothing arrives for
    ``stall_s`` seconds, the run ends with an error; inf sets no limit. Samples stay in Redis for ``blobs_s`` seconds at
    most. Where people judge the samples, they need as long as people do.
    """

    recipe: str
    model: Model
    sampler: Sampler
    rewards: tuple[Reward, ...]
    tasks: tuple[Task, ...]
    heldout: tuple[EvaluationSpec, ...]
    optimizer: OptimizerSpec
    iterations: int
    groups: int
    samples: int
    batch_size: int
    objective: Objective | None = None
    record: RecordSteps | None = None
    reference: Reference | None = None
    updates: int = 1
    updates_by: By = "samples"
    reduction: Literal["mean", "sum"] = "mean"
    files: FromFiles | None = None
    evaluate_every: int = 0
    watch: Watch | None = None
    max_lag: int = 1
    storage: Literal["float32", "float16"] = "float32"
    weights: Literal["float32", "bfloat16"] = "float32"
    pools: Pools = field(default_factory=Pools)
    checkpoint_every: int = 20
    seed: int = 0
    stall_s: float = 300.0
    blobs_s: float = BLOB_LIFETIME_S
    lease_s: float = 30.0

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        check_parts(self)
        check_names(self)
        check_sources(self)
        check_measured(self)
        check_method(self)
        check_watch(self)
        if not self.stall_s > 0:
            raise ConfigError(f"stall_s must be a positive number of seconds, or inf for no limit; got {self.stall_s}")
        for name in ("lease_s", "blobs_s"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name} must be a positive number of seconds, got {getattr(self, name)}")
        self.learner_spec()  # checks the counts

    @property
    def method(self) -> Objective:
        """The objective that trains the weights: that of the samples, or that of the files in a run without tasks."""
        objective = self.objective or (self.files.objective if self.files is not None else None)
        assert objective is not None, "checked when built"
        return objective

    @property
    def fingerprint(self) -> str:
        """Hash of the settings that all roles must share, or they would corrupt each other's work."""
        rewards, heldout = tuple(reward.name for reward in self.rewards), tuple(self.samplers.items())
        shared = (self.model, self.sampler, heldout, self.storage, rewards)
        return blake2b(repr(shared).encode(), digest_size=8).hexdigest()

    @property
    def samplers(self) -> dict[str, Sampler]:
        """Held-out set -> sampler, for the sets that name their own."""
        return {held.name: held.sampler for held in self.heldout if held.sampler is not None}

    @property
    def first_condition(self) -> str | None:
        """The first prompt of the run, which the canary is computed for. None where a run draws no samples."""
        prompts = (*(task.prompts[0] for task in self.tasks), *(held.prompts[0] for held in self.heldout))
        return prompts[0] if prompts else None

    def learner_spec(self) -> LearnerSpec:
        """The learner's part of this configuration."""
        from drover.learner.loop import LearnerSpec

        return LearnerSpec(
            iterations=self.iterations,
            groups=self.groups if self.tasks else 0,
            updates=self.updates,
            updates_by=self.updates_by,
            reduction=self.reduction,
            batch_size=self.batch_size,
            max_lag=self.max_lag,
            order=Order(
                tasks=self.tasks,
                groups=self.groups,
                samples_per_prompt=self.samples,
                record=self.record,
                keep_latents=self.method.learns_from is LatentBatch,
                seed=self.seed,
                fingerprint=self.fingerprint,
            ),
            evaluation=self.heldout,
            evaluate_every=self.evaluate_every,
            watch=self.watch,
            files=self.files,
            optimizer=self.optimizer,
            checkpoint_every=self.checkpoint_every,
            first_condition=self.first_condition,
            canary_tolerance=max(CANARY_TOLERANCE[self.weights], CANARY_TOLERANCE[self.model.compute]),
            stall_s=self.stall_s,
        )
