"""One run, wholly described: what a recipe returns. Frozen; checked when built, so that nothing starts that cannot end."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, field, fields
from hashlib import blake2b
from typing import Any, Literal, get_args

from drover.common.errors import ConfigError
from drover.common.policies.model import Model
from drover.common.protocols import Kernel, Reward
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
POOLS = (
    "rollout",
    "evaluation",
    "rewards",
    "actor",
    "evaluator",
    "learner",
    "driver",
)  # and what their workers are called
CANARY_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # nats; rounding to bfloat16 moves the prediction itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """How many processes of each role, and how many CPU threads each of them computes with."""

    actors: int = 1
    """Rollout processes."""
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
    kernel: Kernel
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
        _check_parts(self)
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
        if not self.kernel.stochastic:
            raise ConfigError("this kernel is deterministic and gives no density to learn from; use eta > 0")
        if self.record.first > self.kernel.num_steps:
            raise ConfigError(
                f"cannot record from the first {self.record.first} steps of a chain of {self.kernel.num_steps}; "
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
        shared = (self.model, self.kernel, self.storage, tuple(reward.name for reward in self.rewards))
        return blake2b(repr(shared).encode(), digest_size=8).hexdigest()

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
            canary_tolerance=CANARY_TOLERANCE[self.weights],
            stall_s=self.stall_s,
        )


def _check_parts(config: RunConfig) -> None:
    """Raise `ConfigError` for a class instead of an object, an object that is no reward, and a name with a slash."""
    for field_ in fields(config):
        value = getattr(config, field_.name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, type):
                where = f"{field_.name}[{value.index(part)}]" if isinstance(value, tuple) else field_.name
                raise ConfigError(f"{where} is the class {part.__name__}; make one: {part.__name__}(...)")
    for number, reward in enumerate(config.rewards):
        _check_reward(f"rewards[{number}]", reward)
    named: dict[str, tuple[Any, ...]] = {"reward": config.rewards, "task": config.tasks, "held-out set": config.heldout}
    for kind, parts in named.items():
        for name in (part.name for part in parts if "/" in part.name):
            raise ConfigError(
                f"{kind} {name!r} has a slash in its name, at which reports take names apart; "
                f"call it {name.replace('/', '_')!r}"
            )


def _check_reward(where: str, reward: Any) -> None:
    wanted = "a description with a `name` and `load(device)`"
    kind = type(reward).__name__
    if inspect.isroutine(reward):
        raise ConfigError(
            f"{where} is the function {reward.__name__}; wrap it in {wanted} that returns it, "
            "such as reward_servers/rewards/jpeg_size.py"
        )
    if not callable(getattr(reward, "load", None)):
        raise ConfigError(f"{where} is a {kind}; wanted {wanted} that returns the function that scores")
    name = getattr(reward, "name", None)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where} is a {kind} without a name; give it one")
    if name in POOLS:
        raise ConfigError(f"a reward cannot be called {name!r}, because a pool is; give it another name")
