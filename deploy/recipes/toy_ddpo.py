"""The recipe toy_ddpo: DDPO on a chain of five Gaussian steps in the plane. It takes seconds, and its outcome is known."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from drover.actors.sampler import Plain
from drover.deploy.config import Pools, RunConfig
from drover.deploy.options import LearningRate, Only, Processes, Training
from drover.learner.intake.evaluation import EvaluationSpec
from drover.learner.intake.tasks import RecordSteps, Task
from drover.learner.objectives.ddpo import Ddpo
from drover.learner.spec import OptimizerSpec
from drover.reward_servers.rewards.toy_point import ToyPoint
from drover.worlds.plane.model import NUM_STEPS, ToyModel, toy_kernel


def toy_ddpo(
    *,
    training: Annotated[Training, Only("iterations", "groups", "samples", "max_lag", "seed")] = Training(
        iterations=150, groups=4, samples=128, batch_size=4096
    ),
    optimizer: LearningRate = OptimizerSpec(lr=0.05, weight_decay=0.0, grad_clip=100.0),
    pools: Processes = Pools(),
) -> RunConfig:
    """Move the end point of a five-step chain to (-1, 1): reward from about -6.4 to -2.0, the best the noise allows."""
    return RunConfig(
        recipe="toy_ddpo",
        model=ToyModel(),
        sampler=Plain(toy_kernel()),
        rewards=(ToyPoint(),),
        objective=Ddpo(weights={"point": 1.0}, clip=0.2, normalise="batch"),
        tasks=(Task(name="point", prompts=("anywhere",), rewards=("point",)),),
        heldout=(EvaluationSpec(name="anywhere", prompts=("anywhere",), samples_per_prompt=512, rewards=("point",)),),
        record=RecordSteps(count=NUM_STEPS, first=NUM_STEPS),
        optimizer=optimizer,
        pools=pools,
        **asdict(training),
    )
