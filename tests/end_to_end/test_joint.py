"""Several rewards at once through the whole service, on the shipped pipeline: small, but every part of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from drover.deploy.run_folder.results import RunFolder
from drover.worlds.shapes import PIPELINE
from tests.end_to_end.service import Train, account

pytestmark = pytest.mark.service


def test_a_joint_run_goes_through_its_tasks_and_judges_all_of_them_on_held_out_prompts(
    tmp_path: Path, shared: dict[str, str]
) -> None:
    options = {"rounds": 2, "groups": 4, "samples": 4, "steps": 5, "learner-ranks": 2, "pretraining-batch": 8}
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with Train("shapes_joint", *arguments, runs_dir=tmp_path, env=shared) as run:
        run.await_workers("actor-0", "actor-1", "rewards-0", "learner-0", "learner-1")
        summary = run.finish()
        updates = [report.scalars for report in run.folder.reports() if report.kind == "update"]
    names = ("preference", "composition", "parity_credit")
    trained = [next(name for name in names if f"reward/{name}/mean" in each) for each in updates]
    assert trained == [*names, *names]
    assert ["files/loss" in each for each in updates] == [False, False, True] * 2
    for moment in ("reward_before", "reward_after"):
        results = {"liked/preference", "liked/taste", "liked/diversity", "relations/composition", "portraits/parity"}
        assert set(summary[moment]) == results
        assert -0.87 <= summary[moment]["portraits/parity"] <= 0 and 0 <= summary[moment]["relations/composition"] <= 1
    assert summary["reward_limit"] == {"portraits/parity": pytest.approx(-0.071, abs=0.001)}
    assert account(summary)["issued"] == 24 and account(summary)["in_flight"] == 0
    assert summary["max_lag_seen"] <= 1
    shown = RunFolder(tmp_path / "run").path / "samples.png"
    assert shown.stat().st_size > 0
    assert {p.name for p in (tmp_path / "run" / "pipeline").iterdir()} >= {p.name for p in PIPELINE.iterdir()} - {
        "README.md"
    }
