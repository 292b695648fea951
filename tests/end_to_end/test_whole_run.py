"""The service, from the command to the files of the finished run."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

import pytest

from tests.end_to_end.service import ALL_TRAINED, SLOW_TOY, UPDATES, Train, account, command_lines, survivors

pytestmark = pytest.mark.service

PASSWORD = re.compile(rb"\b[0-9a-f]{64}\b")  # the form of the embedded Redis's password; Ray's ids are shorter


def test_the_service_learns_the_toy_shows_its_metrics_and_leaves_nothing_running(tmp_path: Path) -> None:
    with Train(SLOW_TOY, "--max-lag", "1", runs_dir=tmp_path) as run:
        run.await_workers("actor-0", "point-0", "learner-0")
        run.await_update(5)
        pages = {name: scrape(address) for name, address in run.targets().items()}
        assert value(pages["actor-0"], "drover_samples_total") >= 5 * 4 * 64
        assert value(pages["point-0"], 'drover_scoring_seconds_count{reward="point"}') >= 1
        assert value(pages["learner-0"], "drover_updates_total") >= 5
        assert value(pages["learner-0"], 'drover_groups_ended_total{ending="trained"}') >= 5 * 4

        lines = command_lines(run.family)
        assert any("redis-server" in line for line in lines.values())
        assert any("raylet" in line for line in lines.values())
        assert [line for line in lines.values() if PASSWORD.search(line.encode())] == []

        summary = run.finish()
        assert survivors(run.family) == {}
    assert summary["reward_before"]["anywhere/point"] < -5
    assert summary["reward_after"]["anywhere/point"] > -2.3
    assert account(summary) == ALL_TRAINED
    assert summary["updates"] == UPDATES
    assert summary["samples"] == UPDATES * 4 * 64
    assert summary["max_lag_seen"] == 1
    assert summary["ended"] == "finished"
    assert 0 < summary["first_update_s"] < summary["wall_s"] < summary["command_s"]
    for name in ("summary.json", "metrics.jsonl", "curves.png", "samples.png", "toy.safetensors"):
        assert (run.folder.path / name).stat().st_size > 0, name
    files = [path for path in run.folder.path.rglob("*") if path.is_file()]
    assert [path for path in files if PASSWORD.search(path.read_bytes())] == []
    assert not PASSWORD.search((run.out + run.err).encode())


def scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        page: bytes = answer.read()
    return page.decode()


def value(page: str, series: str) -> float:
    """The value of one series; its absence fails the test."""
    found = [line for line in page.splitlines() if line.startswith(f"{series} ")]
    assert len(found) == 1, f"{series} is not among\n{page}"
    return float(found[0].rsplit(" ", 1)[1])
