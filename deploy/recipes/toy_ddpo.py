"""DDPO on a chain of five Gaussian steps in the plane: a run of seconds whose outcome is known in advance."""

from __future__ import annotations

from drover.actors.sampler import Plain
from drover.deploy.config import Pools, RunConfig
from drover.learner.intake.evaluation import EvaluationSpec
from drover.learner.intake.tasks import RecordSteps, Task
from drover.learner.objectives.ddpo import Ddpo
from drover.learner.step import OptimizerSpec
from drover.reward_servers.rewards.toy_point import ToyPoint
from drover.worlds.plane.model import ToyModel
from drover.worlds.plane.policy import NUM_STEPS, toy_kernel


def toy_ddpo(
    *,
    iterations: int = 150,
    groups: int = 4,
    samples: int = 128,
    lr: float = 0.05,
    max_lag: int = 1,
    actors: int = 1,
    evaluators: int = 0,
    learner_ranks: int = 1,
    seed: int = 0,
) -> RunConfig:
    """Move the end point of a five-step chain to (-1, 1): reward from about -6.4 to -2.0, the best the noise allows.

    Args:
        iterations: Times new samples are drawn and learned from.
        groups: Prompts per iteration.
        samples: Samples of each prompt.
        lr: AdamW's learning rate.
        max_lag: How many versions old the weights that sampled a group may be; 0 is strictly on-policy.
        actors: Rollout processes.
        evaluators: Further rollout processes that do evaluations alone, beside training; 0: the actors do them.
        learner_ranks: FSDP ranks.
        seed: Of prompts and noise.
    """
    return RunConfig(
        recipe="toy_ddpo",
        model=ToyModel(),
        sampler=Plain(toy_kernel()),
        rewards=(ToyPoint(),),
        objective=Ddpo(weights={"point": 1.0}, clip=0.2, normalise="batch"),
        tasks=(Task(name="point", prompts=("anywhere",), rewards=("point",)),),
        heldout=(EvaluationSpec(name="anywhere", prompts=("anywhere",), samples_per_prompt=512, rewards=("point",)),),
        record=RecordSteps(count=NUM_STEPS, first=NUM_STEPS),
        optimizer=OptimizerSpec(lr=lr, weight_decay=0.0, grad_clip=100.0),
        iterations=iterations,
        groups=groups,
        samples=samples,
        batch_size=4096,
        max_lag=max_lag,
        pools=Pools(actors=actors, evaluators=evaluators, learner_ranks=learner_ranks),
        seed=seed,
    )
