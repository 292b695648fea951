"""One run, wholly described: what a recipe returns. Frozen; checked when built, so that nothing starts that cannot end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal, get_args

from drover.common.errors import ConfigError
from drover.common.policies.model import Model
from drover.common.protocols import Reward, Sampler
from drover.deploy.config_checks import (
    check_measured,
    check_method,
    check_names,
    check_parts,
    check_sources,
    check_watch,
)
from drover.learner.batches import By
from drover.learner.examples import LatentBatch
from drover.learner.files.from_files import FromFiles
from drover.learner.intake.evaluation import EvaluationSpec
from drover.learner.intake.tasks import Order, RecordSteps, Task
from drover.learner.loop import LearnerSpec
from drover.learner.objective import Objective
from drover.learner.overoptimisation import Watch
from drover.learner.reference import Reference
from drover.learner.step import OptimizerSpec

CHOICES: dict[str, tuple[str, ...]] = {
    "storage": ("float32", "float16"),
    "weights": ("float32", "bfloat16"),
    "reduction": ("mean", "sum"),
    "updates_by": get_args(By),
}
CANARY_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of a canary whose weights or whose products are rounded so


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """How many processes of each role, and how many CPU threads each of them computes with."""

    actors: int = 1
    """Rollout processes; 0 where a run learns from files alone and evaluates nothing."""
    evaluators: int = 0
    """Further processes, as large as an actor's, that do evaluations alone, beside training; 0: the actors do them."""
    actor_groups: int = 1
    """Prompts that an actor samples in one batch; 1 gives the same bits whatever waits together."""
    actor_samples: int = 1024
    """Samples that go through an actor's model at once; bounds its memory."""
    reward_servers: int = 1
    """Processes of each reward's pool."""
    reward_gpus: float = 0.0
    """GPUs of each of those, also shares of one; 0: they compute on the CPU."""
    share_rewards: bool = False
    """Rewards without packages of their own live in the same processes, which takes less memory."""
    reward_batch: int = 64
    """Samples of one call of a reward; a group that is larger is scored alone."""
    reward_deadline_s: float = 0.0
    """Seconds after which a call is left behind and its samples are masked; 0: no call can hang."""
    reward_loops: int = 1
    """Scoring loops in each process of a reward; more suit a reward that waits rather than computes."""
    learner_ranks: int = 1
    """FSDP ranks."""
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
    """Everything that decides what is learned, and how large the service is.

    An iteration samples ``groups`` groups of ``samples`` samples, one prompt each, all of one task, and learns from them
    in ``updates`` optimiser steps; the next is the next task's. Held-out prompts are evaluated before and after, and
    every ``evaluate_every`` iterations. ``max_lag`` is how many versions old the weights that sampled a group may be when
    it is trained; 0 is strictly on-policy. ``storage`` is the dtype of recorded states, ``weights`` of published
    parameters. What a dead worker held goes to another after ``lease_s``; nothing arriving for ``stall_s`` ends the run
    with an error.
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
        for name in ("stall_s", "lease_s"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name} must be a positive number of seconds, got {getattr(self, name)}")
        self.learner_spec()  # checks the counts

    @property
    def method(self) -> Objective:
        """The objective that the weights follow: of the samples, or of the files where a run learns from those alone."""
        objective = self.objective or (self.files.objective if self.files is not None else None)
        assert objective is not None, "checked when built"
        return objective

    @property
    def fingerprint(self) -> str:
        """Changes whenever roles that disagree would corrupt each other's work."""
        rewards, heldout = tuple(reward.name for reward in self.rewards), tuple(self.samplers.items())
        shared = (self.model, self.sampler, heldout, self.storage, rewards)
        return blake2b(repr(shared).encode(), digest_size=8).hexdigest()

    @property
    def samplers(self) -> dict[str, Sampler]:
        """Held-out set -> its sampler, of those that have their own."""
        return {held.name: held.sampler for held in self.heldout if held.sampler is not None}

    @property
    def first_condition(self) -> str | None:
        """A name that the model encodes: the first prompt of the run. None where nobody samples."""
        prompts = (*(task.prompts[0] for task in self.tasks), *(held.prompts[0] for held in self.heldout))
        return prompts[0] if prompts else None

    def learner_spec(self) -> LearnerSpec:
        """The learner's part of it."""
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
