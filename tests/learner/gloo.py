"""Learner ranks as processes of this machine, on gloo."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def alone() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def run_ranks(ranks: int, task: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """What each of ``ranks`` processes answers to the task of `tests.learner.rank_program`."""
    command = [sys.executable, "-m", "tests.learner.rank_program"]
    meeting = folder / f"meeting-{ranks}-{abs(hash(json.dumps(task, sort_keys=True)))}"
    processes = [
        subprocess.Popen(
            [*command, json.dumps({**task, "rank": rank, "ranks": ranks, "meeting": str(meeting)})],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    answers = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        answers.append(json.loads(out.splitlines()[-1]))
    return answers
