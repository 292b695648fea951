"""The bundled shapes pipeline under several rewards at once: what people like, things in their places, fair portraits."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from drover.actors.sampler import Plain
from drover.common.diffusion.kernels.renoise import Ddim, Renoise
from drover.common.errors import ConfigError
from drover.common.policies.stable_diffusion.model import StableDiffusionModel
from drover.deploy.config import Pools, RunConfig
from drover.deploy.recipes.shapes_ddpo import LATENT_DIMENSIONS, TRUST, heldout_prompts
from drover.learner.files.pretraining import Pretraining
from drover.learner.intake.evaluation import EvaluationSpec
from drover.learner.intake.tasks import RecordSteps, Task
from drover.learner.objectives.ddpo import Ddpo
from drover.learner.objectives.joint import Joint
from drover.learner.overoptimisation import Watch
from drover.learner.step import OptimizerSpec
from drover.reward_servers.parity import uniform_floor
from drover.reward_servers.rewards.diversity import Diversity
from drover.reward_servers.rewards.learned_preference import LearnedPreference
from drover.reward_servers.rewards.shapes_taste import ShapesTaste
from drover.reward_servers.rewards.shapes_truth import ShapesTruth
from drover.reward_servers.rewards.statistical_parity import StatisticalParity
from drover.worlds.shapes import PIPELINE, PREFERENCE, prompts
from drover.worlds.shapes.judges import Tones
from drover.worlds.shapes.pairs import ShapesPairs
from drover.worlds.shapes.scenes import TONES

TaskName = Literal["preference", "composition", "fairness"]
ALL: tuple[TaskName, ...] = ("preference", "composition", "fairness")

# name -> (reward that trains it, how its advantages are taken)
REWARD = {"preference": "preference", "composition": "composition", "fairness": "parity_credit"}
LIKED = 48  # held-out prompts of all families that preference is judged on
PORTRAIT_SAMPLES = 128  # of each held-out occupation: parity of fewer would mostly be its sampling floor


def shapes_joint(
    *,
    tasks: tuple[TaskName, ...] = ALL,
    rounds: int = 20,
    groups: int = 32,
    samples: int = 16,
    steps: int = 10,
    trained_steps: int = 3,
    guidance: float = 1.0,
    lr: float = 1e-4,
    pretraining_weight: float = 0.1,
    pretraining_batch: int = 64,
    ema: float = 0.0,
    evaluate_every: int = 15,
    batch_size: int = 128,
    max_lag: int = 1,
    actors: int = 2,
    evaluators: int = 0,
    actor_groups: int = 4,
    actor_threads: int = 1,
    reward_servers: int = 1,
    learner_ranks: int = 2,
    learner_threads: int = 1,
    checkpoint: str = str(PIPELINE),
    seed: int = 0,
) -> RunConfig:
    """Raise three things at once on the bundled model: what people like, composition, and parity of skin tones.

    The tasks take turns, an iteration each; a step on real pictures ends every round. All three are judged before and
    after on prompts that were never trained on, also in runs of a single task.

    Args:
        tasks: Which to train, in which order.
        rounds: Iterations of each task.
        groups: Prompts per iteration.
        samples: Samples of each prompt; parity is of this many.
        steps: DDIM steps of a sample, eta 1.
        trained_steps: How many of them are trained: the first ones, which decide where things go.
        guidance: Classifier-free guidance scale, the same in sampling and training; 1 for none.
        lr: AdamW's learning rate, reached after 5 steps and falling to 0 at the last.
        pretraining_weight: Of the step on pretraining pictures that ends a round; 0 for none.
        pretraining_batch: Pictures of that step.
        ema: Share of the moving average of weights that an update keeps; 0 for none.
        evaluate_every: Iterations between evaluations on held-out prompts, parity's aside, which takes many samples; 0 for
            before and after alone. The run ends when they find what people truly like fallen while the learned preference,
            trained on, has risen.
        batch_size: Recorded steps per micro-batch of the learner.
        max_lag: How many versions old the weights that sampled a group may be; 0 is strictly on-policy.
        actors: Rollout processes.
        evaluators: Further rollout processes that do evaluations alone, beside training; 0: the actors do them.
        actor_groups: Prompts that one of them samples in one batch.
        actor_threads: CPU threads of each.
        reward_servers: Processes of each reward's pool.
        learner_ranks: FSDP ranks.
        learner_threads: CPU threads of each.
        checkpoint: Diffusers Stable Diffusion folder to start from.
        seed: Of prompts and noise.
    """
    if not tasks or len(set(tasks)) < len(tasks):
        raise ConfigError(f"tasks must name each task at most once and at least one; got {tasks}")
    clip = TRUST / LATENT_DIMENSIONS
    return RunConfig(
        recipe="shapes_joint",
        model=StableDiffusionModel(checkpoint=checkpoint, guidance=guidance),
        sampler=Plain(Renoise(steps, Ddim(eta=1.0))),
        rewards=(
            LearnedPreference(PREFERENCE),
            ShapesTruth(),
            StatisticalParity(Tones(), credit="leave_one_out", name="parity_credit"),
            StatisticalParity(Tones(), name="parity"),
            ShapesTaste(),
            Diversity(),
        ),
        objective=Joint(
            tasks={name: Ddpo(weights={REWARD[name]: 1.0}, clip=clip, normalise="centred") for name in tasks}
        ),
        tasks=tuple(Task(name=name, prompts=training_prompts(name), rewards=(REWARD[name],)) for name in tasks),
        heldout=heldout_sets(),
        record=RecordSteps(count=trained_steps, first=trained_steps),
        optimizer=OptimizerSpec(
            lr=lr, betas=(0.9, 0.99), weight_decay=1e-4, warmup=5, decay=rounds * len(tasks), ema=ema
        ),
        pretraining=(
            Pretraining(pairs=ShapesPairs(), batch_size=pretraining_batch, weight=pretraining_weight)
            if pretraining_weight
            else None
        ),
        iterations=rounds * len(tasks),
        groups=groups,
        samples=samples,
        batch_size=batch_size,
        evaluate_every=evaluate_every,
        watch=Watch(truth="taste", proxy="preference", stop="preference" in tasks) if evaluate_every else None,
        max_lag=max_lag,
        pools=Pools(
            actors=actors,
            evaluators=evaluators,
            actor_groups=actor_groups,
            reward_servers=reward_servers,
            share_rewards=True,
            learner_ranks=learner_ranks,
            actor_threads=actor_threads,
            learner_threads=learner_threads,
        ),
        seed=seed,
    )


def alone(task: TaskName, what: str) -> Callable[..., RunConfig]:
    """The recipe ``shapes_TASK``, of one task of `shapes_joint`; ``what`` is the first sentence of its help."""

    def recipe(
        *,
        iterations: int = 20,
        lr: float = 1e-4,
        pretraining_weight: float = 0.1,
        evaluate_every: int = 5,
        max_lag: int = 1,
        actors: int = 2,
        evaluators: int = 0,
        learner_ranks: int = 2,
        seed: int = 0,
    ) -> RunConfig:
        """Everything else is as in shapes_joint, so that the two can be compared.

        Args:
            iterations: Times new samples are drawn and learned from.
            lr: AdamW's learning rate, reached after 5 steps and falling to 0 at the last.
            pretraining_weight: Of the step on pretraining pictures after every iteration; 0 for none.
            evaluate_every: As in shapes_joint.
            max_lag: How many versions old the weights that sampled a group may be; 0 is strictly on-policy.
            actors: Rollout processes.
            evaluators: Further rollout processes that do evaluations alone, beside training; 0: the actors do them.
            learner_ranks: FSDP ranks.
            seed: Of prompts and noise.
        """
        config = shapes_joint(
            tasks=(task,),
            rounds=iterations,
            lr=lr,
            pretraining_weight=pretraining_weight,
            evaluate_every=evaluate_every,
            max_lag=max_lag,
            actors=actors,
            evaluators=evaluators,
            learner_ranks=learner_ranks,
            seed=seed,
        )
        return replace(config, recipe=f"shapes_{task}")

    recipe.__name__ = recipe.__qualname__ = f"shapes_{task}"
    recipe.__doc__ = f"{what}\n\n{inspect.getdoc(recipe)}"
    return recipe


def training_prompts(task: TaskName) -> tuple[str, ...]:
    """Of one task. What people like is asked of everything the world can draw, each family alike."""
    relations, portraits = prompts.relation_prompts("train"), prompts.portrait_prompts("train")
    match task:
        case "composition":
            return relations
        case "fairness":
            return portraits
        case "preference":
            return _mixed("train", len(relations))


def heldout_sets() -> tuple[EvaluationSpec, ...]:
    """The same for every run on this world, so that runs of different tasks can be compared."""
    return (
        EvaluationSpec(
            name="liked",
            prompts=_mixed("heldout", LIKED),
            samples_per_prompt=4,
            rewards=("preference", "taste", "diversity"),
        ),
        EvaluationSpec(name="relations", prompts=heldout_prompts(), samples_per_prompt=4, rewards=("composition",)),
        EvaluationSpec(
            name="portraits",
            prompts=prompts.portrait_prompts("heldout"),
            samples_per_prompt=PORTRAIT_SAMPLES,
            rewards=("parity",),
            limits={"parity": -uniform_floor(PORTRAIT_SAMPLES, TONES)},
            during=False,
        ),
    )


def _mixed(split: str, count: int) -> tuple[str, ...]:
    """``count`` prompts, a third each of things, relations and portraits; families with fewer repeat theirs."""
    chooser = random.Random(0)
    families = (prompts.object_prompts(split), prompts.relation_prompts(split), prompts.portrait_prompts(split))
    shuffled = [chooser.sample(family, len(family)) for family in families]
    return tuple(shuffled[i % 3][i // 3 % len(shuffled[i % 3])] for i in range(count))
