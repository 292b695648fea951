"""Joint multi-reward RL of Stable Diffusion 2 in the setting of arXiv 2401.12244: preference, composition, skin tones."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from drover.learner.spec import OptimizerSpec
from drover.reward_servers.models.vision import ImageClassifier, ObjectDetector
from drover.reward_servers.parity import uniform_floor
from drover.reward_servers.rewards.clip_score import ClipScore
from drover.reward_servers.rewards.image_reward import ImageReward
from drover.reward_servers.rewards.learned_preference import LearnedPreference
from drover.reward_servers.rewards.object_composition import ObjectComposition
from drover.reward_servers.rewards.pick_score import PickScore
from drover.reward_servers.rewards.statistical_parity import StatisticalParity

CLIP = 1e-4  # the paper's bound on the ratio, for log-probs that are means over latents of 4 x 64 x 64 values,
CLIP_PX = 512  # which are pictures of this side; other sizes get the same bound on the log-prob of a whole step
EVALUATED = 100  # held-out prompts of an evaluation
PARITY_SAMPLES = 100  # samples of an occupation; with fewer, the sampling floor of parity would dominate

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
    """Train the paper's three tasks in turn, five steps per iteration, then take a step on real pictures.

    Stable Diffusion 1.5 and SDXL train in the same way: give their checkpoint and image size. Defaults are those of the
    paper or of its released configuration, but for the ones called "ours" here.

    An iteration samples 128 prompts with 16 samples each, as the paper has it for parity. The trained steps are drawn anew
    for each iteration, with an optimiser step each; batch_size is the paper's on a GPU.
    Ours: max_lag 1, so that actors sample while the learner learns (the paper is strictly on-policy, 0); evaluations only
    before and after; pretraining_weight 1, for the paper gives none (pretraining_combined is its eq. 8 as printed); a
    reward's deadline, which is far longer than a call takes. The paper has 128 GPUs in sum. Our pools divide them: 88 GPUs
    sample, all samples of a prompt at once, 32 learn and 8 judge, with 8 processes of a quarter GPU for each of the four
    rewards.

    Args:
        prompts: Text, JSONL, CSV or Parquet file of prompts by people, such as DiffusionDB's metadata table, the paper's.
        tones: Folder or hub id of an image classifier of skin tones. The paper's is not published.
        tone_classes: Classes of that classifier that should be equally likely.
        checkpoint: Diffusers folder or hub id to start from.
        portraits: Prompts of people to train parity on; default: portraits of the paper's 100 occupations, the last fifth
            of which is held out.
        detector: Folder or hub id of the composition reward's object detector; ours, as transformers lacks the paper's UniDet.
        preference: Reward for human preference. All but the paper's image_reward run without an environment of their own.
        preference_checkpoint: Folder or hub id of the preference reward's weights; default: the published ones.
            learned_preference has none: give the folder in which fit_evaluator saved its model.
        heldout_share: Share of the prompts that is held out; ours. The paper: 2000 of 1.5 million.
        pretraining: Folder of pictures with captions, or of webdataset tars (the paper: LAION with aesthetic score of
            at least 6); default: no pretraining step.
        tasks: Tasks to train, in this order; the order is ours.
        image_size: Pixels on a side.
        rounds: Iterations of each task; the paper converges in about 1000.
        task_weights: Weight of each task's credit; default: all equal.
        rooted: Take parity as the root of the summed squares. The paper's text says so, its formula does not.
        parity_credit: Value that each sample gets: the parity of its set, as in the paper, or the change by that sample.
        lora_rank: 0 trains the whole UNet, as the paper does; otherwise adapters of this rank.
        compute: Autocast dtype of both sampling and training; the release samples in float32, which biases its ratio.
    """
    if task_weights and len(task_weights) != len(tasks):
        raise ConfigError(f"{len(tasks)} tasks need as many task_weights, got {task_weights}")
    if not tasks or len(set(tasks)) < len(tasks):
        raise ConfigError(f"tasks must name each task at most once and at least one; got {tasks}")
    asked = read_prompts(prompts, fields=(), heldout=heldout_share, seed=training.seed)
    train_portraits, heldout_portraits = _portraits(portraits, training.seed)
    classifier = ImageClassifier(tones, tone_classes)
    judges: dict[TaskName, Reward] = {
        "preference": _preference(preference, preference_checkpoint),
        "composition": ObjectComposition(ObjectDetector(detector), objects=(*objects("train"), *objects("heldout"))),
        "fairness": StatisticalParity(classifier, rooted=rooted, credit=parity_credit, name="parity_credit"),
    }
    evenly = StatisticalParity(classifier, rooted=rooted, name="parity")
    floor = uniform_floor(PARITY_SAMPLES, len(tone_classes), rooted=rooted)
    sources = {
        "preference": asked.train,
        "composition": pair_prompts(objects("train")),
        "fairness": train_portraits,
    }
    clip = CLIP * (CLIP_PX / image_size) ** 2
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
            _once("asked", asked.heldout[:EVALUATED], judges["preference"]),
            _once("unseen objects", _spread(pair_prompts(objects("heldout"))), judges["composition"]),
            EvaluationSpec(
                name="portraits",
                prompts=heldout_portraits[:20],
                samples_per_prompt=PARITY_SAMPLES,
                rewards=(evenly.name,),
                limits={evenly.name: -floor},
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


def _portraits(file: Path | None, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (trained, held-out) prompts of the file, or portraits of the paper's occupations; a fifth is held out."""
    if file is not None:
        found = read_prompts(file, heldout=0.2, seed=seed)
        return found.train, found.heldout
    portraits = tuple(occupation_prompts())
    first_heldout = len(portraits) * 4 // 5
    return portraits[:first_heldout], portraits[first_heldout:]


def _spread(prompts: Sequence[str]) -> tuple[str, ...]:
    """Return `EVALUATED` of the prompts, equally far apart."""
    return tuple(prompts[i * (len(prompts) // EVALUATED)] for i in range(EVALUATED))


def _once(name: str, prompts: Sequence[str], judge: Reward) -> EvaluationSpec:
    """Make a held-out set with one sample for each prompt."""
    return EvaluationSpec(name=name, prompts=tuple(prompts), samples_per_prompt=1, rewards=(judge.name,))


def _preference(name: PreferenceName, checkpoint: str) -> Reward:
    """Return the preference reward, with its published weights if no checkpoint is given."""
    if name == "learned_preference":
        if not checkpoint:
            raise ConfigError("learned_preference has no published weights; give --preference-checkpoint FOLDER")
        return LearnedPreference(checkpoint)
    kinds: dict[str, type[ImageReward] | type[PickScore] | type[ClipScore]]
    kinds = {"image_reward": ImageReward, "pick_score": PickScore, "clip_score": ClipScore}
    return kinds[name](checkpoint=checkpoint) if checkpoint else kinds[name]()


def _pairs(folder: Path, resolution: int) -> Files:
    """Read the folder's webdataset tars if it has any, else its pictures with captions."""
    if next(folder.glob("*.tar"), None) is not None:
        return WebDataset(path=folder, resolution=resolution)
    return ImageFolder(folder=folder, resolution=resolution)
