"""Joint multi-reward RL of Stable Diffusion 2 in the setting of arXiv 2401.12244: preference, composition, skin tones."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal

from drover.actors.sampler import Plain
from drover.common.diffusion.kernels.renoise import Ddim, Renoise
from drover.common.errors import ConfigError
from drover.common.policies.model import Lora
from drover.common.policies.stable_diffusion.model import StableDiffusionModel
from drover.common.protocols import Files, Reward
from drover.deploy.config import Pools, RunConfig
from drover.deploy.options import Only, RealPictures, Sampling, Training
from drover.learner.files.folder import ImageFolder
from drover.learner.files.prompts import read_prompts
from drover.learner.files.templates import objects, occupation_prompts, pair_prompts
from drover.learner.files.webdataset import WebDataset
from drover.learner.intake.evaluation import EvaluationSpec
from drover.learner.intake.tasks import RecordSteps, Task
from drover.learner.objectives.ddpo import Ddpo
from drover.learner.objectives.joint import Joint
from drover.learner.step import OptimizerSpec
from drover.reward_servers.models.vision import ImageClassifier, ObjectDetector
from drover.reward_servers.parity import uniform_floor
from drover.reward_servers.rewards.clip_score import ClipScore
from drover.reward_servers.rewards.image_reward import ImageReward
from drover.reward_servers.rewards.learned_preference import LearnedPreference
from drover.reward_servers.rewards.object_composition import ObjectComposition
from drover.reward_servers.rewards.pick_score import PickScore
from drover.reward_servers.rewards.statistical_parity import StatisticalParity

CLIP = 1e-4  # the paper's, of mean log-probs at 4 x 64 x 64, so of pictures of
CLIP_PX = 512  # on a side; other sizes get the same bound on the log-prob of a whole step
EVALUATED = 100  # held-out prompts that are drawn for each evaluation
PARITY_SAMPLES = 100  # of an occupation: fewer would mostly measure their own sampling floor

ClusterPools = Annotated[
    Pools,
    Only(
        "actors", "evaluators", "actor_samples", "reward_servers", "reward_gpus", "reward_batch", "reward_deadline_s",
        "learner_ranks",
    ),
]  # fmt: skip
TaskName = Literal["preference", "composition", "fairness"]
PreferenceName = Literal["image_reward", "pick_score", "clip_score", "learned_preference"]


def sd2_joint(
    *,
    prompts: Path,
    tones: str,
    tone_classes: tuple[str, ...],
    checkpoint: str = "stabilityai/stable-diffusion-2-base",
    portraits: Path | None = None,
    detector: str = "google/owlvit-base-patch32",
    preference: PreferenceName = "image_reward",
    preference_checkpoint: str = "",
    heldout_share: float = 0.01,
    pretraining: Path | None = None,
    tasks: tuple[TaskName, ...] = ("preference", "composition", "fairness"),
    image_size: int = 512,
    rounds: int = 1000,
    training: Annotated[
        Training, Only("groups", "samples", "batch_size", "max_lag", "evaluate_every", "seed")
    ] = Training(groups=128, samples=16, batch_size=16),
    sampling: Sampling = Sampling(steps=50, trained_steps=5, guidance=7.0),
    optimizer: Annotated[OptimizerSpec, Only("lr", "ema")] = OptimizerSpec(lr=2e-6, grad_clip=math.inf),
    task_weights: tuple[float, ...] = (),
    rooted: bool = True,
    parity_credit: Literal["shared", "leave_one_out"] = "shared",
    pictures: RealPictures = RealPictures(pretraining_batch=2048),
    lora_rank: int = 0,
    compute: Literal["float32", "bfloat16"] = "bfloat16",
    pools: ClusterPools = Pools(
        actors=88, actor_samples=16, reward_servers=8, reward_gpus=0.25, reward_deadline_s=120.0, learner_ranks=32
    ),
) -> RunConfig:
    """The paper's run: three tasks in turn, five steps shared by an iteration, then a step on real pictures.

    The same for Stable Diffusion 1.5 and SDXL: give their checkpoint and image size. Where nothing else is said, the default
    is the paper's or its released configuration's; "ours" is neither's.

    An iteration samples 128 prompts with 16 samples each, as the paper has it for parity. The trained steps are drawn anew
    for each iteration, with an optimiser step each; batch_size is the paper's on a GPU.
    Ours: max_lag 1, so that actors sample while the learner learns (the paper is strictly on-policy, 0); no evaluations but
    before and after; pretraining_weight 1, for the paper gives none (pretraining_combined is its eq. 8 as printed). Ours are
    all pools but the GPUs in sum, 128: 88 sample, a prompt's samples at once, 32 learn and 8 judge, each of the four rewards
    with 8 processes of a quarter GPU; and a reward's deadline, which is far longer than a call takes.

    Args:
        prompts: Text, JSONL, CSV or Parquet with what people ask for, such as DiffusionDB's metadata table, the paper's.
        tones: Folder or hub id of an image classifier of skin tones. The paper's is not published.
        tone_classes: Its classes that should be equally likely.
        checkpoint: Diffusers folder or hub id to start from.
        portraits: Prompts of people to train parity on; default: portraits of the paper's 100 occupations, the last fifth
            of which is held out.
        detector: Folder or hub id of the composition reward's object detector; ours, as transformers lacks the paper's UniDet.
        preference: Reward of what people prefer. All but the paper's image_reward run without an environment of their own.
        preference_checkpoint: Folder or hub id of its weights; default: those it was published with. learned_preference has
            none: give the folder that fit_evaluator's model was saved in.
        heldout_share: Share of the prompts that is held out; ours. The paper: 2000 of 1.5 million.
        pretraining: Folder of pictures with captions, or of webdataset tars (the paper: LAION with aesthetic score of
            at least 6); default: no pretraining step.
        tasks: Which to train, in which order; the order is ours.
        image_size: Pixels on a side.
        rounds: Iterations of each task; the paper converges in about 1000.
        task_weights: Of each task; default: all alike.
        rooted: Parity as the root of the summed squares. The paper's text says so, its formula does not.
        parity_credit: What a sample is given: the parity of its set, as in the paper, or what it changes.
        lora_rank: 0 trains the whole UNet, as the paper does; otherwise adapters of this rank.
        compute: Autocast regime, of sampling and training alike; the release samples in float32, which biases its ratio.
    """
    if task_weights and len(task_weights) != len(tasks):
        raise ConfigError(f"{len(tasks)} tasks need as many task_weights, got {task_weights}")
    if not tasks or len(set(tasks)) < len(tasks):
        raise ConfigError(f"tasks must name each task at most once and at least one; got {tasks}")
    asked = read_prompts(prompts, fields=(), heldout=heldout_share, seed=training.seed)
    people = read_prompts(portraits, fields=(), heldout=0.2, seed=training.seed) if portraits else None
    occupations = occupation_prompts()
    train_portraits = people.train if people else occupations[: len(occupations) * 4 // 5]
    heldout_portraits = people.heldout if people else occupations[len(occupations) * 4 // 5 :]
    classifier = ImageClassifier(tones, tone_classes)
    judges: dict[TaskName, Reward] = {
        "preference": _preference(preference, preference_checkpoint),
        "composition": ObjectComposition(ObjectDetector(detector), objects=(*objects("train"), *objects("heldout"))),
        "fairness": StatisticalParity(classifier, rooted=rooted, credit=parity_credit, name="parity_credit"),
    }
    evenly = StatisticalParity(classifier, rooted=rooted, name="parity")
    sources = {
        "preference": asked.train,
        "composition": pair_prompts(objects("train")),
        "fairness": tuple(train_portraits),
    }
    clip = CLIP * (CLIP_PX / image_size) ** 2
    unseen = pair_prompts(objects("heldout"))
    return RunConfig(
        recipe="sd2_joint",
        model=StableDiffusionModel(
            checkpoint=checkpoint,
            guidance=sampling.guidance,
            compute=compute,
            image_size=(image_size, image_size),
            lora=Lora(rank=lora_rank, alpha=float(lora_rank)) if lora_rank else None,
        ),
        sampler=Plain(Renoise(sampling.steps, Ddim(eta=1.0))),
        rewards=(*judges.values(), evenly),
        objective=Joint(
            tasks={name: Ddpo(weights={judges[name].name: 1.0}, clip=clip, normalise="batch") for name in tasks},
            weights=dict(zip(tasks, task_weights, strict=True)) if task_weights else {},
        ),
        tasks=tuple(Task(name=name, prompts=sources[name], rewards=(judges[name].name,)) for name in tasks),
        heldout=(
            EvaluationSpec(
                name="asked",
                prompts=asked.heldout[:EVALUATED],
                samples_per_prompt=1,
                rewards=(judges["preference"].name,),
            ),
            EvaluationSpec(
                name="unseen objects",
                prompts=tuple(unseen[i * (len(unseen) // EVALUATED)] for i in range(EVALUATED)),
                samples_per_prompt=1,
                rewards=(judges["composition"].name,),
            ),
            EvaluationSpec(
                name="portraits",
                prompts=tuple(heldout_portraits)[:20],
                samples_per_prompt=PARITY_SAMPLES,
                rewards=("parity",),
                limits={"parity": -uniform_floor(PARITY_SAMPLES, len(tone_classes), rooted=rooted)},
            ),
        ),
        record=RecordSteps(count=sampling.trained_steps, first=sampling.steps, shared=True),
        optimizer=optimizer,
        files=pictures.of(_pairs(pretraining, image_size)) if pretraining else None,
        updates_by="steps",
        reduction="sum",
        storage="float16",
        pools=pools,
        **asdict(replace(training, iterations=rounds * len(tasks), updates=sampling.trained_steps)),
    )


def _preference(name: PreferenceName, checkpoint: str) -> Reward:
    """With the published weights where no checkpoint is given."""
    if name == "learned_preference":
        if not checkpoint:
            raise ConfigError("learned_preference has no published weights; give --preference-checkpoint FOLDER")
        return LearnedPreference(checkpoint)
    kinds: dict[str, type[ImageReward] | type[PickScore] | type[ClipScore]]
    kinds = {"image_reward": ImageReward, "pick_score": PickScore, "clip_score": ClipScore}
    return kinds[name](checkpoint=checkpoint) if checkpoint else kinds[name]()


def _pairs(folder: Path, resolution: int) -> Files:
    """Webdataset tars where there are any, else pictures with their captions."""
    if next(folder.glob("*.tar"), None) is not None:
        return WebDataset(path=folder, resolution=resolution)
    return ImageFolder(folder=folder, resolution=resolution)
