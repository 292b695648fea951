"""One run, wholly described: what a recipe returns. Frozen; checked when built, so that nothing starts that cannot end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from hashlib import blake2b
from typing import Literal, get_args

from drover.common.errors import ConfigError
from drover.common.policies.model import Model
from drover.common.protocols import Reward, Sampler
from drover.learner.batches import By
from drover.learner.files.pretraining import Pretraining
from drover.learner.intake.evaluation import EvaluationSpec
from drover.learner.intake.tasks import Order, RecordSteps, Task
from drover.learner.loop import LearnerSpec
from drover.learner.objective import Objective
from drover.learner.overoptimisation import Watch
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
    evaluators: int = 0  # processes as large as an actor's that do evaluations alone; 0: the actors do them
    actor_groups: int = 1  # orders an actor samples in one batch; 1 gives the same bits whatever waits together
    actor_samples: int = 1024  # samples that go through an actor's model at once; bounds its memory
    reward_servers: int = 1  # processes of each reward
    reward_gpus: float = 0.0  # GPUs of each of them, also shares of one; 0: they compute on the CPU
    share_rewards: bool = False  # rewards without packages of their own live in the same processes: less memory
    reward_batch: int = 64  # samples of one call of a reward; a group that is larger is scored alone
    reward_deadline_s: float = 0.0  # a call that takes longer is left behind and its samples masked; 0: none may hang
    reward_loops: int = 1  # scoring loops in each of them; more suit a reward that waits rather than computes
    learner_ranks: int = 1
    actor_threads: int = 1
    learner_threads: int = 1

    def __post_init__(self) -> None:
        counts = {field.name: getattr(self, field.name) for field in fields(self) if field.type == "int"}
        spare = counts.pop("evaluators")
        if min(counts.values()) < 1 or spare < 0 or self.reward_gpus < 0:
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
    objective: Objective
    tasks: tuple[Task, ...]
    heldout: tuple[EvaluationSpec, ...]
    record: RecordSteps
    optimizer: OptimizerSpec
    iterations: int
    groups: int
    samples: int
    batch_size: int
    updates: int = 1
    updates_by: By = "samples"
    reduction: Literal["mean", "sum"] = "mean"
    pretraining: Pretraining | None = None
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
        names = [reward.name for reward in self.rewards]
        if len(set(names)) < len(names):
            raise ConfigError(f"two rewards share a name: {names}; give one of them another")
        asked = [
            self.objective.rewards,
            *(task.rewards for task in self.tasks),
            *(held.rewards for held in self.heldout),
        ]
        unknown = {name for some in asked for name in some} - set(names)
        if unknown:
            raise ConfigError(f"{sorted(unknown)} is to be measured, but the rewards are {names}; add or rename one")
        if not self.tasks or not self.heldout:
            raise ConfigError("a run needs at least one task and one held-out set")
        kernel = self.sampler.kernel
        if not kernel.stochastic:
            raise ConfigError("this kernel is deterministic and gives no density to learn from; use eta > 0")
        if self.sampler.guidance is not None:
            raise ConfigError(
                f"the run's sampler sets guidance {self.sampler.guidance}, under which the learner knows no density; leave "
                "it out and set the guidance of the model"
            )
        if self.record.first > kernel.num_steps:
            raise ConfigError(
                f"cannot record from the first {self.record.first} steps of a chain of {kernel.num_steps}; "
                "lower first or raise the number of steps"
            )
        if self.samples < 1:
            raise ConfigError(f"samples must be at least 1, got {self.samples}")
        if self.objective.needs_groups and self.samples < 2:
            raise ConfigError("advantages within a group need at least 2 samples of each prompt; raise --samples")
        for name in ("stall_s", "lease_s"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name} must be a positive number of seconds, got {getattr(self, name)}")
        self.learner_spec()  # checks the counts

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
    def first_condition(self) -> str:
        """A name that the model encodes: the first prompt of the run."""
        return self.tasks[0].prompts[0]

    def learner_spec(self) -> LearnerSpec:
        """The learner's part of it."""
        return LearnerSpec(
            iterations=self.iterations,
            groups=self.groups,
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
                seed=self.seed,
                fingerprint=self.fingerprint,
            ),
            evaluation=self.heldout,
            evaluate_every=self.evaluate_every,
            watch=self.watch,
            pretraining=self.pretraining,
            optimizer=self.optimizer,
            checkpoint_every=self.checkpoint_every,
            first_condition=self.first_condition,
            canary_tolerance=max(CANARY_TOLERANCE[self.weights], CANARY_TOLERANCE[self.model.compute]),
            stall_s=self.stall_s,
        )
