"""A cluster of three nodes, each in a network namespace of this host, loses no work when a node dies or is cut off.

Runs with DROVER_TEST_NODES=1 and takes minutes, most of them until Ray notices that a node is gone. `drover bench chaos` does
more of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.chaos.service import Service
from benchmarks.chaos.three_nodes import REWARD, ROLLOUT, ThreeNodes, possible
from tests.end_to_end.service import ALL_TRAINED, UPDATES, account, assert_same

pytestmark = [
    pytest.mark.service,
    pytest.mark.skipif(os.environ.get("DROVER_TEST_NODES") != "1", reason="takes minutes: set DROVER_TEST_NODES=1"),
]

SHORT_S = 6.0  # of silence; Ray gives a node up after some 30 s


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ThreeNodes]:
    if not possible():
        pytest.skip("needs root and the ip command, to make network namespaces")
    with ThreeNodes(tmp_path / "cluster") as cluster:
        yield cluster


def test_a_node_that_dies_and_one_that_is_cut_off_for_a_while_change_nothing(
    tmp_path: Path, cluster: ThreeNodes, reference: dict[str, torch.Tensor]
) -> None:
    where = {"env": cluster.env, "prefix": cluster.head.prefix, "beside": cluster.look}
    with Service(tmp_path / "run", arguments=("--iterations", str(UPDATES)), **where) as run:
        run.until(lambda: run.furthest >= 4, "update 4")
        cluster.nodes[ROLLOUT].kill()
        run.until(lambda: run.furthest >= 10, "update 10")
        cluster.nodes[REWARD].cut()
        heals_s = time.monotonic() + SHORT_S
        run.until(lambda: time.monotonic() > heals_s, "time to heal")
        cluster.nodes[REWARD].heal()
        run.until(lambda: run.finished, "the end")
        assert run.starts == 1
    assert account(run.summary) == ALL_TRAINED
    assert "actor-0 died and was replaced" in run.events
    assert_same(load_file(tmp_path / "run" / "run" / "toy.safetensors"), reference)
