"""Pools grow and shrink while a real run goes on: the learned weights do not differ by a bit, and no group is lost."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

import pytest
import torch

from tests.end_to_end.service import ALL_TRAINED, SLOW_TOY, Train, account, assert_same, drover

pytestmark = pytest.mark.service


def scale(run: Train, *arguments: str) -> None:
    run.until((run.folder.path / "pools.json").exists, "pools.json")
    found = drover("scale", "run", *arguments, "--runs-dir", str(run.folder.path.parent))
    assert found.returncode == 0, found.stderr


def newest(run: Train) -> dict[str, float]:
    """Scalars of the newest update; empty before the first."""
    updates = run.updates()
    return dict(updates[-1].scalars) if updates else {}


def drawn(run: Train, worker: str) -> float:
    """Samples that an actor has drawn so far, by its own count."""
    with urllib.request.urlopen(f"http://{run.targets()[worker]}/metrics", timeout=10) as page:
        counts = re.findall(r"^drover_samples_total(?:{.*})? (\S+)$", page.read().decode(), re.MULTILINE)
    return sum(float(count) for count in counts)


def test_pools_scaled_out_and_in_again_lose_nothing_and_learn_the_same(
    tmp_path: Path, shared: dict[str, str], reference: dict[str, torch.Tensor]
) -> None:
    with Train(SLOW_TOY, "--pause-s", "0.3", runs_dir=tmp_path, env=shared) as run:
        scale(run, "--rollout", "3", "--reward", "point=2")
        run.await_workers("actor-2", "point-1")
        run.until(
            lambda: {"pool/rollout": 3.0, "pool/reward/point": 2.0}.items() <= newest(run).items(), "three actors"
        )
        number = int(newest(run)["update"])
        run.await_update(number + 2)
        scale(run, "--rollout", "1", "--reward", "point=1")
        run.until(lambda: not {"actor-1", "actor-2", "point-1"} & run.targets().keys(), "fewer workers")
        summary = run.finish()
        assert account(summary) == ALL_TRAINED
        assert not [event for event in run.events if "died" in event or "not answered" in event], run.events
        assert not (run.folder.path / "pools.json").exists()
        assert_same(run.weights, reference)


def test_a_run_with_bounds_takes_on_the_actors_that_its_learner_waits_for(
    tmp_path: Path, shared: dict[str, str]
) -> None:
    options = ["--iterations", "100000", "--max-lag", "2", "--pause-s", "0.3", "--autoscale", "rollout=1:2"]
    with Train(SLOW_TOY, *options, runs_dir=tmp_path, env=shared) as run:
        run.await_workers("actor-1")
        assert json.loads((run.folder.path / "pools.json").read_text()) == {
            "sizes": {"rollout": 2, "point": 1},
            "bounds": {"rollout": [1, 2]},
        }
        run.until(lambda: drawn(run, "actor-1") > 0, "samples of actor-1")
        assert any(event.startswith("actor-1 joins: rollout goes from 1 to 2") for event in run.events), run.events
        run.process.terminate()
        assert run.end() == 130
        ledger = run.summary["ledger"]
        assert ledger["failed"] == ledger["stale"] == 0, ledger
