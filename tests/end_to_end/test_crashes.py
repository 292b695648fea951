"""Processes are killed in the middle of on-policy runs; what is learned must not differ by a bit."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest
import torch

from drover.common.transport.embedded import EmbeddedRedis, connect
from tests.end_to_end.service import (
    ALL_TRAINED,
    SLOW_TOY,
    UPDATES,
    Train,
    account,
    assert_same,
    command_lines,
    survivors,
)

pytestmark = pytest.mark.service


def test_actors_and_reward_servers_that_are_killed_or_preempted_are_replaced_and_change_nothing(
    tmp_path: Path, shared: dict[str, str], reference: dict[str, torch.Tensor]
) -> None:
    """Leases of an hour: what is neither handed back nor claimed by the successor would stop the run."""
    with Train(SLOW_TOY, "--lease-s", "3600", runs_dir=tmp_path, env=shared) as run:
        struck = []
        for update, worker, how in (
            (3, "actor-0", signal.SIGKILL),
            (6, "point-0", signal.SIGKILL),
            (9, "actor-0", signal.SIGTERM),
            (12, "point-0", signal.SIGTERM),
        ):
            run.await_update(update)
            struck.append(run.worker(worker))
            struck[-1].send_signal(how)
        assert account(run.finish()) == ALL_TRAINED
        assert survivors(set(struck)) == {}
        assert len(set(struck)) == 4
        assert [run.events.count(f"{worker} died and was replaced") for worker in ("actor-0", "point-0")] == [2, 2]
        assert_same(run.weights, reference)


def test_a_killed_learner_resumes_from_its_newest_checkpoint_and_learns_the_same(
    tmp_path: Path, shared: dict[str, str], reference: dict[str, torch.Tensor]
) -> None:
    with Train(SLOW_TOY, runs_dir=tmp_path, env=shared) as run:
        learner = run.worker("learner-0")
        run.await_update(8)
        learner.send_signal(signal.SIGKILL)
        summary = run.finish()
        assert account(summary) == ALL_TRAINED
        assert summary["updates"] == UPDATES
        assert "learner-0 died and was replaced" in run.events
        numbers = [int(report.scalars["update"]) for report in run.updates()]
        again = next(i for i in range(1, len(numbers)) if numbers[i] <= numbers[i - 1])
        assert numbers[again] % 5 == 1, f"went on at update {numbers[again]}, checkpoints are every 5"
        assert numbers[again] > 1
        assert_same(run.weights, reference)


def test_a_redis_that_dies_comes_back_empty_and_what_was_under_way_is_ordered_again(
    tmp_path: Path, shared: dict[str, str], reference: dict[str, torch.Tensor]
) -> None:
    env = {name: value for name, value in shared.items() if name != "DROVER_REDIS_URL"}
    with Train(SLOW_TOY, runs_dir=tmp_path, env=env) as run:
        for update in (3, 11):
            run.await_update(update)
            (server,) = (pid for pid, line in command_lines(run.family).items() if "redis-server" in line)
            psutil.Process(server).kill()
        assert account(run.finish()) == ALL_TRAINED
        assert_same(run.weights, reference)


def test_blobs_on_two_redis_change_nothing_even_where_the_second_comes_back_empty(
    tmp_path: Path, shared: dict[str, str], reference: dict[str, torch.Tensor]
) -> None:
    with EmbeddedRedis() as second:
        env = {**shared, "DROVER_REDIS_URL": f"{shared['DROVER_REDIS_URL']} {second.url}"}
        with Train(SLOW_TOY, runs_dir=tmp_path, env=env) as run:
            run.await_update(3)
            with connect(second.url) as client:
                assert client.info("commandstats")["cmdstat_set"]["calls"] > 0, "it holds blobs"
            second.restart()
            assert account(run.finish()) == ALL_TRAINED
        assert_same(run.weights, reference)
        with connect(second.url) as client:
            assert client.dbsize() == 0, "the run left something behind"
