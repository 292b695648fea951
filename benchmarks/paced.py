"""A recipe whose roles sleep, as in `sleepers`, with evaluations during training by another reward or by both rewards."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from benchmarks.sleepers import sleepers
from drover.deploy.config import RunConfig
from drover.learner.intake.evaluation import EvaluationSpec
from drover.reward_servers.rewards.toy_point import ToyPoint
from drover.worlds.plane.slow import Slow

SAMPLES = 16  # samples of a group, and of an order of an evaluation


def paced(
    *,
    iterations: int = 60,
    groups: int = 8,
    group_s: float = 0.2,
    score_s: float = 0.02,
    judged_by: Literal["other", "both"] = "other",
    evaluate_every: int = 0,
    orders: int = 4,
    actors: int = 2,
    evaluators: int = 0,
) -> RunConfig:
    """Train at a pace that the actors limit, or a busy reward.

    Args:
        iterations: Iterations of the run.
        groups: Groups of 16 samples per iteration.
        group_s: Seconds that an actor takes for a group.
        score_s: Seconds that a reward takes for a group.
        judged_by: Rewards that judge the held-out set.
        evaluate_every: Iterations between evaluations.
        orders: Orders of an evaluation, each as large as a group.
        actors: Rollout processes.
        evaluators: Processes that sample evaluations only.
    """
    config = sleepers(
        rollout_s=group_s / SAMPLES, learn_s=0.0, iterations=iterations, groups=groups, samples=SAMPLES, actors=actors
    )
    rewards = tuple(Slow(ToyPoint(name=name), score_s / SAMPLES) for name in ("point", "other"))
    return replace(
        config,
        recipe="paced",
        rewards=rewards,
        heldout=(
            EvaluationSpec(
                name="anywhere",
                prompts=("anywhere",) * orders,
                samples_per_prompt=SAMPLES,
                rewards=("other",) if judged_by == "other" else ("point", "other"),
            ),
        ),
        evaluate_every=evaluate_every,
        pools=replace(config.pools, evaluators=evaluators),
    )
