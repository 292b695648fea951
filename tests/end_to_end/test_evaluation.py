"""Evaluations beside training: by processes of their own, each of one version, and without a trace in what is learned."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from drover.common.types import Report
from tests.deploy.in_place import Done, train
from tests.end_to_end.recipes import slow_toy
from tests.end_to_end.service import ALL_TRAINED, SLOW_TOY, UPDATES, Train, account, assert_same

pytestmark = pytest.mark.service

EVERY = 4


def evaluations(run: Train | Done) -> list[Report]:
    return [report for report in run.folder.reports() if report.kind == "eval"]


def test_evaluators_judge_each_version_as_one_process_does_and_training_learns_the_same_bits(
    tmp_path: Path, shared: dict[str, str], reference: dict[str, torch.Tensor]
) -> None:
    alone = train(slow_toy(pause_s=0.0, evaluate_every=EVERY), tmp_path, name="alone")
    wanted = {report.version: report.scalars["heldout/anywhere/point/mean"] for report in evaluations(alone)}
    arguments = ("--evaluators", "1", "--evaluate-every", str(EVERY))
    with Train(SLOW_TOY, *arguments, runs_dir=tmp_path, env=shared) as run:
        evaluator = run.worker("evaluator-0")
        run.await_update(2)
        evaluator.send_signal(signal.SIGKILL)
        summary = run.finish()
        found = evaluations(run)
        assert_same(run.weights, reference)
        assert "evaluator-0 died and was replaced" in run.events
    assert account(summary) == ALL_TRAINED
    assert [report.version for report in found] == [report.scalars["update"] for report in found]
    assert (found[0].version, found[-1].version) == (0, UPDATES)
    counts = {report.scalars["heldout/anywhere/point/count"] for report in found}
    assert counts == {64.0}, "something was lost with the evaluator"
    assert all(report.version % EVERY == 0 for report in found)
    assert len(found) + int(found[-1].scalars["evaluation/skipped"]) == 1 + UPDATES // EVERY
    for report in found:
        assert report.scalars["heldout/anywhere/point/mean"] == wanted[report.version], report.version
