"""Recipes for the bundled shapes model: three tasks jointly, each of them alone, and composition in a setting of its own."""

from __future__ import annotations

import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

from drover.actors.sampler import Plain
from drover.common.diffusion.kernels.renoise import Ddim, Renoise
from drover.common.errors import ConfigError
from drover.common.policies.model import Lora
from drover.common.policies.stable_diffusion.model import StableDiffusionModel
from drover.common.protocols import Reward
from drover.deploy.config import Pools, RunConfig
from drover.deploy.options import LearningRate, Only, Processes, RealPictures, Sampling, Training
from drover.learner.files.prompts import read_prompts
from drover.learner.intake.evaluation import EvaluationSpec
from drover.learner.intake.tasks import RecordSteps, Task
from drover.learner.objectives.ddpo import Ddpo
from drover.learner.objectives.joint import Joint
from drover.learner.overoptimisation import Watch
from drover.learner.spec import OptimizerSpec
from drover.reward_servers.parity import uniform_floor
from drover.reward_servers.rewards.diversity import Diversity
from drover.reward_servers.rewards.jpeg_size import JpegSize
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
REWARD = {
    "preference": "preference",
    "composition": "composition",
    "fairness": "parity_credit",
}  # the reward that trains each task

LATENT_DIMENSIONS = 4 * 8 * 8
CLIP = 1.64 / LATENT_DIMENSIONS  # the same bound for a whole step as the papers' 1e-4 at 4 x 64 x 64
HELDOUT = 48  # prompts of a held-out set
PORTRAIT_SAMPLES = 128  # samples of each held-out occupation; with fewer, the sampling floor of parity would dominate

REWARDS = (
    LearnedPreference(PREFERENCE),
    ShapesTruth(),
    StatisticalParity(Tones(), credit="leave_one_out", name="parity_credit"),
    StatisticalParity(Tones(), name="parity"),
    ShapesTaste(),
    Diversity(),
)
JUDGES: dict[str, Reward] = {
    "composition": ShapesTruth(),
    "jpeg_small": JpegSize("small"),
    "jpeg_large": JpegSize("large"),
}

LaptopPools = Annotated[
    Pools,
    Only("actors", "evaluators", "actor_groups", "actor_threads", "reward_servers", "learner_ranks", "learner_threads"),
]
OPTIMIZER = OptimizerSpec(lr=1e-4, betas=(0.9, 0.99), weight_decay=1e-4, warmup=5)
PICTURES = RealPictures(pretraining_weight=0.1)

AloneTraining = Annotated[Training, Only("iterations", "max_lag", "evaluate_every", "seed")]
AlonePictures = Annotated[RealPictures, Only("pretraining_weight")]
ALONE = Training(iterations=20, groups=32, samples=16, evaluate_every=5)
POOLS = Pools(actors=2, actor_groups=4, share_rewards=True, learner_ranks=2)


def shapes_ddpo(
    *,
    reward: Literal["composition", "jpeg_small", "jpeg_large"] = "composition",
    training: Annotated[
        Training, Only("iterations", "groups", "samples", "updates", "batch_size", "max_lag", "seed")
    ] = Training(iterations=42, groups=64, samples=8),
    sampling: Sampling = Sampling(),
    optimizer: LearningRate = OPTIMIZER,
    pools: LaptopPools = Pools(actors=2, actor_groups=8, learner_ranks=2),
    lora_rank: int = 0,
    compute: Literal["float32", "bfloat16"] = "float32",
    checkpoint: str = str(PIPELINE),
    prompt_file: Path | None = None,
) -> RunConfig:
    """Teach the bundled text-to-image model to place two shapes as the prompt asks, judged on pairs it was never trained on.

    The first steps of a sample are trained, for they decide the places of things. The learning rate rises over 5 steps and
    falls to 0 at the last.

    Args:
        reward: Reward to raise: right things in the right places (0 to 1), or small or large JPEG files (kB).
        lora_rank: 0 trains the whole UNet, otherwise adapters of this rank.
        compute: Autocast dtype of sampling and training.
        checkpoint: Diffusers Stable Diffusion folder to start from.
        prompt_file: UTF-8 text, one training prompt per line; default: the prompts of the shapes world.
    """
    judge = JUDGES[reward]
    asked = read_prompts(prompt_file, fields=()).train if prompt_file else prompts.relation_prompts("train")
    lora = Lora(rank=lora_rank, alpha=float(lora_rank)) if lora_rank else None
    return RunConfig(
        recipe="shapes_ddpo",
        model=StableDiffusionModel(checkpoint=checkpoint, guidance=sampling.guidance, compute=compute, lora=lora),
        sampler=Plain(Renoise(sampling.steps, Ddim(eta=1.0))),
        rewards=(judge,),
        objective=Ddpo(weights={judge.name: 1.0}, clip=CLIP, normalise="centred"),
        tasks=(Task(name=judge.name, prompts=asked, rewards=(judge.name,)),),
        heldout=(relations(judge.name),),
        record=RecordSteps(count=sampling.trained_steps, first=sampling.trained_steps),
        optimizer=replace(optimizer, decay=training.iterations * training.updates),
        pools=pools,
        **asdict(training),
    )


def shapes_joint(
    *,
    tasks: tuple[TaskName, ...] = ALL,
    rounds: int = 20,
    training: Annotated[
        Training, Only("groups", "samples", "batch_size", "max_lag", "evaluate_every", "seed")
    ] = Training(groups=32, samples=16, evaluate_every=15),
    sampling: Sampling = Sampling(),
    optimizer: Annotated[OptimizerSpec, Only("lr", "ema")] = OPTIMIZER,
    pictures: Annotated[RealPictures, Only("pretraining_weight", "pretraining_batch")] = PICTURES,
    pools: LaptopPools = POOLS,
    checkpoint: str = str(PIPELINE),
) -> RunConfig:
    """Raise three rewards at once on the bundled model: human preference, composition, and parity of skin tones.

    The tasks take turns, an iteration each; a step on real pictures ends every round. All three are judged before and
    after on prompts that were never trained on, also in runs of a single task; parity, which takes many samples, is left
    out of the evaluations between. The run ends when an evaluation finds that the true preference has fallen while the
    learned preference, which is trained on, has risen. The first steps of a sample are trained, for they decide the places
    of things. The learning rate rises over 5 steps and falls to 0 at the last.

    Args:
        tasks: Tasks to train, in this order.
        rounds: Iterations of each task.
        checkpoint: Diffusers Stable Diffusion folder to start from.
    """
    if not tasks or len(set(tasks)) < len(tasks):
        raise ConfigError(f"tasks must name each task at most once and at least one; got {tasks}")
    training = replace(training, iterations=rounds * len(tasks))
    parts: dict[str, Ddpo] = {name: Ddpo(weights={REWARD[name]: 1.0}, clip=CLIP, normalise="centred") for name in tasks}
    watch = Watch(truth="liked/taste", proxy="liked/preference", stop="preference" in tasks)
    return RunConfig(
        recipe="shapes_joint",
        model=StableDiffusionModel(checkpoint=checkpoint, guidance=sampling.guidance),
        sampler=Plain(Renoise(sampling.steps, Ddim(eta=1.0))),
        rewards=REWARDS,
        objective=Joint(tasks=parts),
        tasks=tuple(Task(name=name, prompts=training_prompts(name), rewards=(REWARD[name],)) for name in tasks),
        heldout=heldout_sets(),
        record=RecordSteps(count=sampling.trained_steps, first=sampling.trained_steps),
        optimizer=replace(optimizer, decay=training.iterations),
        files=pictures.of(ShapesPairs()),
        watch=watch if training.evaluate_every else None,
        pools=pools,
        **asdict(training),
    )


def shapes_preference(
    *,
    training: AloneTraining = ALONE,
    optimizer: LearningRate = OPTIMIZER,
    pictures: AlonePictures = PICTURES,
    pools: Processes = POOLS,
) -> RunConfig:
    """Raise human preference on the bundled model, and nothing else: the tones of its portraits narrow.

    Everything else is as in shapes_joint, so that the two can be compared.
    """
    return _alone("preference", training, optimizer, pictures, pools)


def shapes_composition(
    *,
    training: AloneTraining = ALONE,
    optimizer: LearningRate = OPTIMIZER,
    pictures: AlonePictures = PICTURES,
    pools: Processes = POOLS,
) -> RunConfig:
    """Raise composition on the bundled model, and nothing else: things stand at the places that the prompt names.

    Everything else is as in shapes_joint, so that the two can be compared.
    """
    return _alone("composition", training, optimizer, pictures, pools)


def shapes_fairness(
    *,
    training: AloneTraining = ALONE,
    optimizer: LearningRate = OPTIMIZER,
    pictures: AlonePictures = PICTURES,
    pools: Processes = POOLS,
) -> RunConfig:
    """Raise parity of the skin tones of every occupation on the bundled model, and nothing else.

    Everything else is as in shapes_joint, so that the two can be compared.
    """
    return _alone("fairness", training, optimizer, pictures, pools)


def _alone(
    task: TaskName, training: Training, optimizer: OptimizerSpec, pictures: RealPictures, pools: Pools
) -> RunConfig:
    """Make the recipe ``shapes_TASK``: one task of `shapes_joint`."""
    config = shapes_joint(
        tasks=(task,),
        rounds=training.iterations,
        training=training,
        optimizer=optimizer,
        pictures=pictures,
        pools=pools,
    )
    return replace(config, recipe=f"shapes_{task}")


def training_prompts(task: TaskName) -> tuple[str, ...]:
    """Return the training prompts of one task. Those of preference come equally from all three families of prompts."""
    relations, portraits = prompts.relation_prompts("train"), prompts.portrait_prompts("train")
    match task:
        case "composition":
            return relations
        case "fairness":
            return portraits
        case "preference":
            return _mixed("train", len(relations))


def heldout_sets() -> tuple[EvaluationSpec, ...]:
    """Return the held-out sets, which are the same for all tasks, so that their runs can be compared."""
    return (
        EvaluationSpec(
            name="liked",
            prompts=_mixed("heldout", HELDOUT),
            samples_per_prompt=4,
            rewards=("preference", "taste", "diversity"),
        ),
        relations("composition"),
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
    """Return ``count`` prompts, a third each of things, relations and portraits; a family with fewer repeats them."""
    chooser = random.Random(0)
    families = (prompts.object_prompts(split), prompts.relation_prompts(split), prompts.portrait_prompts(split))
    shuffled = [chooser.sample(family, len(family)) for family in families]
    return tuple(shuffled[i % 3][i // 3 % len(shuffled[i % 3])] for i in range(count))


def relations(reward: str) -> EvaluationSpec:
    """Return the held-out set of pairs of things that no training prompt names; the choice is the same for every run."""
    chosen = random.Random(0).sample(prompts.relation_prompts("heldout"), HELDOUT)
    return EvaluationSpec(name="relations", prompts=tuple(chosen), samples_per_prompt=4, rewards=(reward,))
