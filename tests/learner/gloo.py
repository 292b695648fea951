"""Learner ranks on gloo: in this process alone, or as processes of this machine."""

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


def run_ranks(ranks: int, pipeline: Path, folder: Path) -> list[dict[str, Any]]:
    """Run ``ranks`` processes of `tests.learner.rank_program` and return the answer of each."""
    program = [sys.executable, "-m", "tests.learner.rank_program"]
    processes = [
        subprocess.Popen(
            [*program, str(rank), str(ranks), str(pipeline), str(folder)], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for rank in range(ranks)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=200)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    return [json.loads((folder / f"answer-{rank}.json").read_text()) for rank in range(ranks)]
