"""The bundled shapes pipeline under one reward of `shapes_joint` alone: what a specialist gains, and what it costs."""

from __future__ import annotations

from dataclasses import replace

from deploy.config import RunConfig
from deploy.recipes.shapes_joint import shapes_joint


def shapes_preference(
    *,
    iterations: int = 20,
    lr: float = 1e-4,
    pretraining_weight: float = 0.1,
    evaluate_every: int = 0,
    stop_when_overoptimised: bool = False,
    max_lag: int = 1,
    actors: int = 2,
    learner_ranks: int = 2,
    seed: int = 0,
) -> RunConfig:
    """Raise what people like on the bundled model, and nothing else: the tones of its portraits narrow.

    Everything else is as in shapes_joint, so that the two can be compared.

    Args:
        iterations: Times new samples are drawn and learned from.
        lr: AdamW's learning rate, reached after 5 steps and falling to 0 at the last.
        pretraining_weight: Of the step on pretraining pictures after every iteration; 0 for none.
        evaluate_every: Iterations between evaluations on held-out prompts; 0 for before and after alone.
        stop_when_overoptimised: End when what people truly like falls while the learned preference rises.
        max_lag: How many versions old the weights that sampled a group may be; 0 is strictly on-policy.
        actors: Rollout processes.
        learner_ranks: FSDP ranks.
        seed: Of prompts and noise.
    """
    config = shapes_joint(
        tasks=("preference",),
        rounds=iterations,
        lr=lr,
        pretraining_weight=pretraining_weight,
        evaluate_every=evaluate_every,
        stop_when_overoptimised=stop_when_overoptimised,
        max_lag=max_lag,
        actors=actors,
        learner_ranks=learner_ranks,
        seed=seed,
    )
    return replace(config, recipe="shapes_preference")
