"""Checks that the parts of a `RunConfig` fit each other: objective, tasks, rewards, sampler and files.

Each check raises a `ConfigError` of one sentence that names the edit, before any process starts.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from drover.common.errors import ConfigError
from drover.common.prompts import Prompt
from drover.learner.examples import LatentBatch

if TYPE_CHECKING:
    from drover.common.media.media import Media
    from drover.common.protocols import Reward
    from drover.deploy.config import RunConfig
    from drover.learner.intake.evaluation import EvaluationSpec
    from drover.learner.intake.tasks import Task


POOLS = (
    "rollout",
    "evaluation",
    "rewards",
    "actor",
    "evaluator",
    "learner",
    "driver",
)  # pools, and names of their workers


def check_parts(config: RunConfig) -> None:
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
    if not isinstance(getattr(reward, "takes", None), type):
        raise ConfigError(
            f"{where} is a {kind} that does not say what media it scores; "
            "give it the attribute takes: ClassVar[type[Media]] = Pictures"
        )
    name = getattr(reward, "name", None)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where} is a {kind} without a name; give it one")
    if name in POOLS:
        raise ConfigError(f"a reward cannot be called {name!r}, because a pool is; give it another name")


def check_names(config: RunConfig) -> None:
    """Raise `ConfigError` if two rewards, two tasks or two held-out sets share a name."""
    for kind, things in (("reward", config.rewards), ("task", config.tasks), ("held-out set", config.heldout)):
        names = [thing.name for thing in things]
        if len(set(names)) < len(names):
            raise ConfigError(f"two {kind}s share a name: {names}; give one of them another")


def check_measured(config: RunConfig) -> None:
    """Raise `ConfigError` unless every named reward exists, takes the model's media, and finds its fields in each prompt."""
    rewards = {reward.name: reward for reward in config.rewards}
    sets: list[Task | EvaluationSpec] = [*config.tasks, *config.heldout]
    asked = {name for one in sets for name in one.rewards} | set(
        config.objective.needs.rewards if config.objective else ()
    )
    unknown = sorted(asked - rewards.keys())
    if unknown:
        raise ConfigError(f"{unknown} is to be measured, but the rewards are {sorted(rewards)}; add or rename one")
    for reward in config.rewards:
        _check_media(reward, config.model.media)
    for one in sets:
        for name in one.rewards:
            _check_fields(rewards[name], one.name, one.prompts)


def _check_media(reward: Reward, drawn: type[Media]) -> None:
    if reward.takes is not drawn:
        raise ConfigError(
            f"reward {reward.name!r} scores {reward.takes.__name__}, but the model draws {drawn.__name__}; "
            "take a reward or a model of the other kind"
        )


def _check_fields(reward: Reward, where: str, prompts: Iterable[str]) -> None:
    wanted = tuple(getattr(reward, "fields", ()))
    for prompt in prompts if wanted else ():
        known = prompt.fields if isinstance(prompt, Prompt) else {}
        missing = [name for name in wanted if name not in known]
        if missing:
            raise ConfigError(
                f"reward {reward.name!r} reads the field {missing[0]!r}, which prompt {str(prompt)!r} of {where!r} does not "
                f"have (it has {sorted(known) or 'none'}); add the column to the prompt file"
            )


def check_method(config: RunConfig) -> None:
    """Raise `ConfigError` unless the objective gets the rewards, batches, densities, siblings and reference it needs."""
    needs, name = config.method.needs, type(config.method).__name__
    for task in config.tasks:
        _check_task(config, task)
    if needs.by_task and not needs.by_task.keys() >= {task.name for task in config.tasks}:
        raise ConfigError(
            f"{name} has the tasks {sorted(needs.by_task)}, the run has {sorted(task.name for task in config.tasks)}; "
            "name the same tasks in both"
        )
    _check_batches(config)
    if config.samples < needs.siblings:
        raise ConfigError(
            f"{name} compares at least {needs.siblings} samples of each prompt, got samples={config.samples}; raise samples"
        )
    if needs.one_version and config.max_lag:
        raise ConfigError(
            f"{name} needs all samples of an iteration from the same weights, got max_lag={config.max_lag}; set max_lag=0"
        )
    uses = needs.reference or (config.files is not None and config.files.objective.needs.reference)
    if uses and config.reference is None:
        raise ConfigError(f"{name} compares the policy with a reference; set reference=FrozenCopy() or AdaptersOff()")
    if config.reference is not None:
        if not uses:
            raise ConfigError(f"{name} uses no reference, but reference={config.reference} is set; leave it out")
        config.reference.check(config.model)


def _check_task(config: RunConfig, task: Task) -> None:
    needs = config.method.needs
    if needs.by_task and task.name not in needs.by_task:
        return  # check_method names all such tasks in one error
    missing = sorted(set(needs.of_task(task.name)) - set(task.rewards))
    if missing:
        raise ConfigError(
            f"{type(config.method).__name__} reads {missing}, which task {task.name!r} does not measure; it measures "
            f"{sorted(task.rewards)}: add {missing} to the rewards of the task"
        )


def _check_batches(config: RunConfig) -> None:
    """Raise `ConfigError` if an objective that learns from steps has no recorded steps or densities, or another one has."""
    name, kernel = type(config.method).__name__, config.sampler.kernel
    if config.method.learns_from is LatentBatch:
        if config.record is not None:
            raise ConfigError(f"{name} learns from clean latents and reads no recorded steps; leave record out")
        if config.updates_by == "steps":
            raise ConfigError(
                f"{name} learns from clean latents, which have no steps to divide; set updates_by='samples'"
            )
        return
    if config.record is None:
        raise ConfigError(f"{name} learns from recorded denoising steps; set record=RecordSteps(count=..., first=...)")
    if not kernel.stochastic:
        raise ConfigError(
            f"{name} learns from the density of denoising steps, and this kernel is deterministic and has none; use eta > 0"
        )
    if config.sampler.guidance is not None:
        raise ConfigError(
            f"the run's sampler sets guidance {config.sampler.guidance}, under which the learner computes no density; leave "
            "it out and set the guidance of the model"
        )
    if config.record.first > kernel.num_steps:
        raise ConfigError(
            f"cannot record from the first {config.record.first} steps of a chain of {kernel.num_steps}; "
            "lower first or raise the number of steps"
        )
    if config.updates_by == "steps" and config.record.count % config.updates:
        raise ConfigError(f"{config.record.count} recorded steps do not divide into {config.updates} updates")


def check_sources(config: RunConfig) -> None:
    """Raise `ConfigError` unless the run has tasks or learns from files alone, and has an actor if it needs samples."""
    alone = config.files is not None and config.files.when == "alone"
    if alone == bool(config.tasks):
        raise ConfigError(
            "a run that learns from files alone has no tasks; give tasks, or files=FromFiles(..., when='alone')"
            if not alone
            else f"files are learned from alone, but there are {len(config.tasks)} tasks; drop them, or set when='round'"
        )
    if alone == (config.objective is not None):
        raise ConfigError(
            "a run that learns from files alone takes the objective of the files; leave objective out"
            if alone
            else "a run with tasks needs an objective, such as Ddpo(...); set objective"
        )
    for name in ("samples", "groups"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be at least 1, got {getattr(config, name)}")
    if (config.tasks or config.heldout) and config.pools.actors < 1:
        raise ConfigError("tasks and held-out sets need at least one actor to sample them; raise actors, or drop them")


def check_watch(config: RunConfig) -> None:
    """Raise `ConfigError` if the watch compares a result that no held-out set measures."""
    if config.watch is not None and config.evaluate_every > 0:
        measured = {f"{held.name}/{name}" for held in config.heldout for name in held.rewards}
        unknown = sorted({config.watch.truth, config.watch.proxy} - measured)
        if unknown:
            raise ConfigError(
                f"the watch compares {unknown}, as SET/REWARD; the held-out sets measure {sorted(measured)}"
            )
