"""A run whose processes no node can hold is refused before anything waits for it; a run that fits is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from drover.common.errors import ConfigError
from drover.deploy.cluster import placing
from drover.deploy.cluster.placing import Ask
from drover.deploy.cluster.worker import pools_of
from drover.deploy.config import Pools
from drover.deploy.recipes.toy_ddpo import toy_ddpo

CLUSTER = [
    {"CPU": 4.0},
    {"CPU": 8.0, "GPU": 1.0, "rollout": 1.0},
    {"CPU": 8.0, "GPU": 1.0, "rollout": 1.0},
    {"CPU": 16.0, "reward": 1.0},
    {"CPU": 8.0, "GPU": 2.0, "learner": 1.0},
]


def asks(*, gpus: float = 1.0, **pools: object) -> list[Ask]:
    config = toy_ddpo()
    config = replace(config, pools=replace(config.pools, **pools))  # type: ignore[arg-type]
    return placing.asks(config, pools_of(config, gpus=gpus), gpus)


@pytest.mark.parametrize(
    ("pools", "said"),
    [
        ({"actors": 2, "learner_ranks": 2, "reward_servers": 4}, ""),
        (
            {"actors": 3},
            "this run asks for 3 GPUs (3 rollout x 1), the nodes marked rollout have 2; lower --reward-gpus",
        ),
        (
            {"actors": 2, "actor_threads": 9},
            "this run asks for 18 CPUs (2 rollout x 9), the nodes marked rollout have 16; lower --actors",
        ),
        (
            {"actors": 1, "actor_threads": 9},
            "each process of rollout asks for 9 CPUs and 1 GPU of one node, and no node marked rollout has that",
        ),
        ({"reward_gpus": 0.25}, "this run asks for 0.25 GPUs (1 point x 0.25), the nodes marked reward have 0"),
        (
            {"actors": 1, "learner_ranks": 4},
            "this run asks for 5 GPUs (1 rollout x 1 + 4 learner x 1), the cluster has 4",
        ),
        (
            {"learner_ranks": 1, "learner_threads": 9},
            "this run asks for 9 CPUs (1 learner x 9), the nodes marked learner have 8",
        ),
    ],
)
def test_a_cluster_of_marked_nodes(pools: dict[str, object], said: str) -> None:
    found = placing.shortage(asks(**pools), CLUSTER)
    assert found.startswith(said) if said else found == ""


def test_without_marks_any_node_will_do_and_cpus_that_are_shared_do_not_count() -> None:
    nodes = [{"CPU": 2.0}, {"CPU": 2.0}]
    assert placing.shortage(asks(gpus=0.0, actors=2), nodes) == ""
    assert "asks for 5.1 CPUs (1 point x 0.1 + 4 rollout x 1 + 1 learner x 1), the cluster has 4" in placing.shortage(
        asks(gpus=0.0, actors=4), nodes
    )
    assert placing.shortage(asks(gpus=0.0, actors=40), nodes, alone=True) == ""
    too_large = replace(toy_ddpo(), pools=Pools(actor_threads=3))
    with pytest.raises(ConfigError, match=r"rollout asks for 3 CPUs of one node, and no node has that; lower --actors"):
        placing.plan(too_large, [*nodes, {"CPU": 2.0}], alone=False)


@pytest.mark.parametrize(
    ("gpus", "pools", "share"),
    [
        (0, Pools(), 0.0),
        (1, Pools(actors=1), 0.5),
        (1, Pools(actors=1, evaluators=1), 0.3333),
        (2, Pools(actors=2), 0.5),  # three shares, of which no GPU holds more than it has
        (3, Pools(actors=2), 1.0),
        (8, Pools(actors=5, learner_ranks=2, reward_gpus=0.25), 1.0),
        (1, Pools(actors=1, reward_gpus=0.5), 0.25),
    ],
)
def test_a_machine_of_our_own_shares_its_gpus_so_that_all_find_room(gpus: int, pools: Pools, share: float) -> None:
    config = replace(toy_ddpo(), pools=pools)
    node = {"CPU": 2.0, **({"GPU": float(gpus)} if gpus else {})}
    found = placing.gpus_each(config, [node], alone=True)
    assert found == pytest.approx(share)
    assert placing.plan(config, [node], alone=True) == (pools_of(config, gpus=found), found)


@pytest.mark.parametrize(("gpus", "pools"), [(2, Pools(actors=1, learner_ranks=2)), (1, Pools(reward_gpus=1.0))])
def test_ranks_that_would_share_a_gpu_and_rewards_that_take_all_are_refused(gpus: int, pools: Pools) -> None:
    with pytest.raises(ConfigError, match="pass --learner-ranks 1, or fewer of"):
        placing.gpus_each(replace(toy_ddpo(), pools=pools), [{"GPU": float(gpus)}], alone=True)


def test_on_a_cluster_each_has_a_whole_gpu_or_none() -> None:
    assert placing.gpus_each(toy_ddpo(), CLUSTER, alone=False) == 1.0
    assert placing.gpus_each(toy_ddpo(), [{"CPU": 64.0}], alone=False) == 0.0
