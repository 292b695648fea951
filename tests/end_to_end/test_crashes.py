"""Processes are killed in the middle of on-policy runs; what is learned must not differ by a bit."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from tests.end_to_end.service import SLOW_TOY, Train, account, assert_same

pytestmark = pytest.mark.service


def test_a_killed_actor_and_a_killed_reward_server_are_replaced_and_change_nothing(
    tmp_path: Path, shared: dict[str, str], reference: dict[str, torch.Tensor]
) -> None:
    with Train(SLOW_TOY, runs_dir=tmp_path, env=shared) as run:
        actor, server = run.worker("actor-0"), run.worker("point-0")
        run.await_update(3)
        actor.send_signal(signal.SIGKILL)
        run.await_update(12)
        server.send_signal(signal.SIGKILL)
        ledger = account(run.finish())
        assert ledger == {"issued": 160, "in_flight": 0, "trained": 160, "empty": 0, "failed": 0, "stale": 0}
        assert "actor-0 died and was replaced" in run.events
        assert "point-0 died and was replaced" in run.events
        assert_same(run.weights, reference)


def test_a_killed_learner_resumes_from_its_newest_checkpoint_and_learns_the_same(
    tmp_path: Path, shared: dict[str, str], reference: dict[str, torch.Tensor]
) -> None:
    with Train(SLOW_TOY, runs_dir=tmp_path, env=shared) as run:
        learner = run.worker("learner-0")
        run.await_update(13)
        learner.send_signal(signal.SIGKILL)
        summary = run.finish()
        assert account(summary)["trained"] == 40 * 4
        assert summary["updates"] == 40
        assert "learner-0 died and was replaced" in run.events
        numbers = [int(report.scalars["update"]) for report in run.updates()]
        again = next(i for i in range(1, len(numbers)) if numbers[i] <= numbers[i - 1])
        assert numbers[again] % 5 == 1, f"went on at update {numbers[again]}, checkpoints are every 5"
        assert numbers[again] > 1
        assert_same(run.weights, reference)
