"""A recipe whose reward is scored over HTTP: given to the command as ``secret_recipes.py:remote_toy``."""

from __future__ import annotations

from dataclasses import replace

from drover.deploy.config import Pools, RunConfig
from drover.deploy.recipes.toy_ddpo import toy_ddpo
from drover.reward_servers.rewards.http_reward import HttpReward


def remote_toy(*, url: str, iterations: int = 30, learner_ranks: int = 1) -> RunConfig:
    """The toy, scored by an endpoint that wants a token."""
    reward = HttpReward("point", url, token_variable="DROVER_REWARD_TOKEN", batch_size=256)
    return replace(
        toy_ddpo(),
        recipe="remote_toy",
        rewards=(reward,),
        iterations=iterations,
        groups=2,
        samples=16,
        checkpoint_every=10,
        pools=Pools(learner_ranks=learner_ranks),
    )
