"""Processes are killed in the middle of on-policy runs; the learned weights must not differ by a bit."""

from __future__ import annotations

import signal
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import torch

from drover.common.transport.embedded import EmbeddedRedis, connect
from drover.common.types import Report
from tests.deploy.in_place import Done, train
from tests.end_to_end.recipes import slow_toy
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

EVERY = 4  # updates between evaluations


def test_workers_of_every_pool_that_are_killed_or_preempted_are_replaced_and_change_nothing(
    tmp_path: Path, shared: dict[str, str], reference: dict[str, torch.Tensor]
) -> None:
    """Leases of an hour: a message neither handed back nor taken over by the restarted worker would stop the run."""
    alone = train(slow_toy(pause_s=0.0, evaluate_every=EVERY), tmp_path, name="alone")
    arguments = ("--lease-s", "3600", "--evaluators", "1", "--evaluate-every", str(EVERY))
    with Train(SLOW_TOY, *arguments, runs_dir=tmp_path, env=shared) as run:
        struck = []
        for update, worker, how in (
            (2, "evaluator-0", signal.SIGKILL),
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
    assert len(set(struck)) == 5
    replaced = [run.events.count(f"{worker} died and was replaced") for worker in ("evaluator-0", "actor-0", "point-0")]
    assert replaced == [1, 2, 2]
    assert_same(run.weights, reference)
    check_evaluations(evaluations(run), evaluations(alone))


def evaluations(run: Train | Done) -> list[Report]:
    return [report for report in run.folder.reports() if report.kind == "eval"]


def check_evaluations(found: list[Report], alone: list[Report]) -> None:
    """Assert that each evaluation is whole, of the version of its update, and equal to that of the run in one process."""
    wanted = {report.version: report.scalars["heldout/anywhere/point/mean"] for report in alone}
    assert [report.version for report in found] == [report.scalars["update"] for report in found]
    assert (found[0].version, found[-1].version) == (0, UPDATES)
    assert {report.scalars["heldout/anywhere/point/count"] for report in found} == {64.0}
    assert all(report.version % EVERY == 0 for report in found)
    assert len(found) + int(found[-1].scalars["evaluation/skipped"]) == 1 + UPDATES // EVERY
    for report in found:
        assert report.scalars["heldout/anywhere/point/mean"] == wanted[report.version], report.version


def test_a_killed_learner_and_a_second_redis_that_comes_back_empty_change_nothing(
    tmp_path: Path, shared: dict[str, str], reference: dict[str, torch.Tensor]
) -> None:
    """The learner resumes from its newest checkpoint. Blobs are spread over two Redis; orders are on the first."""
    with EmbeddedRedis() as second:
        env = {**shared, "DROVER_REDIS_URL": f"{shared['DROVER_REDIS_URL']} {second.url}"}
        with Train(SLOW_TOY, runs_dir=tmp_path, env=env) as run:
            learner = run.worker("learner-0")
            run.await_update(8)
            learner.send_signal(signal.SIGKILL)
            run.until(lambda: again(run) > 0, "the update after which the learner was killed, once more")
            with connect(second.url) as client:
                assert client.info("commandstats")["cmdstat_set"]["calls"] > 0, "it holds blobs"
            second.restart()
            summary = run.finish()
        with connect(second.url) as client:
            assert client.dbsize() == 0, "the run left something behind"
    assert account(summary) == ALL_TRAINED
    assert summary["updates"] == UPDATES
    assert "learner-0 died and was replaced" in run.events
    assert again(run) > 1 and again(run) % 5 == 1, f"went on at update {again(run)}, checkpoints are every 5"
    assert_same(run.weights, reference)


def again(run: Train) -> int:
    """The first update that was made a second time; 0 where none was."""
    numbers = [int(report.scalars["update"]) for report in run.updates()]
    return next((number for before, number in pairwise(numbers) if number <= before), 0)


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
        assert any("cannot be reached; trying again for" in event for event in run.events), run.events
