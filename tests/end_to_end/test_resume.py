"""A whole run in one process that is killed and goes on: `drover train RECIPE --resume RUN`."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.end_to_end.service import RECIPES, Train, account, assert_same, drover

pytestmark = pytest.mark.service
RICH_TOY = f"{RECIPES}:rich_toy"


def test_a_process_killed_at_three_random_moments_learns_the_same_bits(tmp_path: Path) -> None:
    """A run with tasks, pretraining steps, a moving average and evaluations; after SIGKILL the same command resumes it."""
    with Train(RICH_TOY, "--pause-s", "0", "--one-process", runs_dir=tmp_path, name="whole") as whole:
        wanted = whole.finish()
    chooser = random.Random(0)
    for life in range(3):
        with Train(RICH_TOY, "--one-process", "--resume-if-begun", runs_dir=tmp_path) as run:
            run.await_update(3 + 5 * life)
            time.sleep(chooser.uniform(0.0, 0.5))
            run.process.send_signal(signal.SIGKILL)
            run.process.wait()
    with Train(RICH_TOY, "--one-process", "--resume", "run", runs_dir=tmp_path) as run:
        found = run.finish()
    assert_same(run.weights, whole.weights)
    assert found["reward_before"] == wanted["reward_before"] and found["reward_after"] == wanted["reward_after"]
    assert account(found) == account(wanted)
    refused = drover("train", RICH_TOY, "--runs-dir", str(tmp_path), "--resume", "run", "--one-process", "--seed", "1")
    assert refused.returncode == 2 and "seed: was 0, now 1" in refused.stderr
