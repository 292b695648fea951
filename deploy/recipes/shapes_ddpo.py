"""DDPO on the bundled shapes pipeline: put things where the prompt says. The laptop's main run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Literal

from drover.actors.sampler import Plain
from drover.common.diffusion.kernels.renoise import Ddim, Renoise
from drover.common.errors import ConfigError
from drover.common.policies.model import Lora
from drover.common.policies.stable_diffusion.model import StableDiffusionModel
from drover.common.protocols import Reward
from drover.deploy.config import Pools, RunConfig
from drover.learner.files.prompts import read_prompts
from drover.learner.intake.evaluation import EvaluationSpec
from drover.learner.intake.tasks import RecordSteps, Task
from drover.learner.objectives.ddpo import Ddpo
from drover.learner.step import OptimizerSpec
from drover.reward_servers.rewards.jpeg_size import JpegSize
from drover.reward_servers.rewards.shapes_truth import ShapesTruth
from drover.worlds.shapes import PIPELINE, prompts

LATENT_DIMENSIONS = 4 * 8 * 8
TRUST = 1.64  # clip x dimensions: the trust region of the papers' 1e-4 at 4 x 64 x 64
HELDOUT = 48  # prompts


def shapes_ddpo(
    *,
    reward: Literal["composition", "jpeg_small", "jpeg_large"] = "composition",
    iterations: int = 42,
    groups: int = 64,
    samples: int = 8,
    steps: int = 10,
    trained_steps: int = 3,
    guidance: float = 1.0,
    lr: float = 1e-4,
    updates: int = 1,
    batch_size: int = 128,
    max_lag: int = 1,
    actors: int = 2,
    evaluators: int = 0,
    actor_groups: int = 8,
    actor_threads: int = 1,
    reward_servers: int = 1,
    learner_ranks: int = 2,
    learner_threads: int = 1,
    lora_rank: int = 0,
    compute: Literal["float32", "bfloat16"] = "float32",
    checkpoint: str = str(PIPELINE),
    prompt_file: Path | None = None,
    seed: int = 0,
) -> RunConfig:
    """Teach the bundled text-to-image model to place two shapes as the prompt asks, judged on pairs it was never trained on.

    Args:
        reward: What to raise: right things in the right places (0 to 1), or small or large JPEG files (kB).
        iterations: Times new samples are drawn and learned from.
        groups: Prompts per iteration.
        samples: Samples of each prompt; advantages are taken among them.
        steps: DDIM steps of a sample, eta 1.
        trained_steps: How many of them are trained: the first ones, which decide where things go.
        guidance: Classifier-free guidance scale, the same in sampling and training; 1 for none.
        lr: AdamW's learning rate, reached after 5 steps and falling to 0 at the last.
        updates: Optimiser steps an iteration is divided into.
        batch_size: Recorded steps per micro-batch of the learner.
        max_lag: How many versions old the weights that sampled a group may be; 0 is strictly on-policy.
        actors: Rollout processes.
        evaluators: Further rollout processes that do evaluations alone, beside training; 0: the actors do them.
        actor_groups: Prompts that one of them samples in one batch; 1 for the same bits whatever waits together.
        actor_threads: CPU threads of each.
        reward_servers: Processes of the reward's pool.
        learner_ranks: FSDP ranks.
        learner_threads: CPU threads of each.
        lora_rank: 0 trains the whole UNet, otherwise adapters of this rank.
        compute: Autocast regime of sampling and training.
        checkpoint: Diffusers Stable Diffusion folder to start from.
        prompt_file: UTF-8 text, one training prompt per line; default: the world's own.
        seed: Of prompts and noise.
    """
    if not 1 <= trained_steps <= steps:
        raise ConfigError(f"trained_steps must lie between 1 and steps = {steps}, got {trained_steps}")
    judge: Reward = (
        ShapesTruth() if reward == "composition" else JpegSize("small" if reward == "jpeg_small" else "large")
    )
    return RunConfig(
        recipe="shapes_ddpo",
        model=StableDiffusionModel(
            checkpoint=checkpoint,
            guidance=guidance,
            compute=compute,
            lora=Lora(rank=lora_rank, alpha=float(lora_rank)) if lora_rank else None,
        ),
        sampler=Plain(Renoise(steps, Ddim(eta=1.0))),
        rewards=(judge,),
        objective=Ddpo(weights={judge.name: 1.0}, clip=TRUST / LATENT_DIMENSIONS, normalise="centred"),
        tasks=(
            Task(
                name=judge.name,
                prompts=read_prompts(prompt_file).train if prompt_file else prompts.relation_prompts("train"),
                rewards=(judge.name,),
            ),
        ),
        heldout=(
            EvaluationSpec(name="relations", prompts=heldout_prompts(), samples_per_prompt=4, rewards=(judge.name,)),
        ),
        record=RecordSteps(count=trained_steps, first=trained_steps),
        optimizer=OptimizerSpec(lr=lr, betas=(0.9, 0.99), weight_decay=1e-4, warmup=5, decay=iterations * updates),
        iterations=iterations,
        groups=groups,
        samples=samples,
        batch_size=batch_size,
        updates=updates,
        max_lag=max_lag,
        pools=Pools(
            actors=actors,
            evaluators=evaluators,
            actor_groups=actor_groups,
            reward_servers=reward_servers,
            learner_ranks=learner_ranks,
            actor_threads=actor_threads,
            learner_threads=learner_threads,
        ),
        seed=seed,
    )


def heldout_prompts() -> tuple[str, ...]:
    """A fixed choice from the pairs that no training prompt names."""
    return tuple(random.Random(0).sample(prompts.relation_prompts("heldout"), HELDOUT))
