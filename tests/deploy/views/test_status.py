"""`drover status`: a line for each run, everything of one, and the same as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drover.common import metrics
from drover.common.errors import CheckpointError
from drover.common.exporter import PrometheusMeter, merged
from drover.deploy.cluster import discovery
from drover.deploy.cluster.discovery import MetricsEndpoint
from drover.deploy.run_folder.results import RunFolder
from drover.deploy.views import status
from drover.deploy.views.standing import standing
from tests.deploy.made_up_run import report, run, update


def made_up(tmp_path: Path, updates: int = 30) -> RunFolder:
    folder = RunFolder.create("blue", tmp_path)
    for one in run(updates, 50):
        folder.append(one)
    return folder


def shown(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, **options: Any) -> str:
    monkeypatch.setenv("COLUMNS", "120")
    assert status.run(status.StatusOptions(runs_dir=tmp_path, **options)) == 0
    return capsys.readouterr().out


def test_one_run_is_shown_with_rewards_lag_times_ledger_and_queues(tmp_path, capsys, monkeypatch) -> None:
    made_up(tmp_path)
    lines = {line[:14].strip(): line for line in shown(tmp_path, capsys, monkeypatch, run="blue").splitlines()}
    last = run(30, 50)[-1].scalars
    assert f"colour {last['reward/colour/mean']:.4g} (held out 0.3000 -> 0.6600)" in lines["rewards"]
    assert "lag 1   of at most 1   first ratio 1.0000   clipped 8." in lines["policy"]
    assert f"learner {last['samples_per_s']:.3g}/s" in lines["throughput"]
    assert "issued 984   in flight 24   trained 958   empty 1   failed 1   stale 0" in lines["ledger"]
    assert "work 12 (1.4 s)   colour 3 (0.2 s)" in lines["queues"]
    assert "rollout 3   reward/colour 1" in lines["workers"]
    assert "rollout worker 2 died" in lines["event"]


def test_a_roles_time_is_a_bar_that_adds_up(tmp_path, capsys, monkeypatch) -> None:
    made_up(tmp_path)
    (line,) = [
        s for s in shown(tmp_path, capsys, monkeypatch, run="blue").splitlines() if s.startswith("learner's time")
    ]
    assert sum(line.count(shade) for shade in "█▓░") == status.BAR
    assert line.count("█") == status.BAR // 2 and line.count("░") == 13, "half computes, 10 + 25 + 5 % wait"
    assert "compute 50%, wait data 25%, wait reward 10%, weights 10%, other 5%" in line


def test_redis_shows_how_full_it_is(tmp_path, capsys, monkeypatch) -> None:
    folder = made_up(tmp_path)
    last = run(31, 50)[-1]
    last.scalars.update({"redis/used_bytes": 256 * 2**20, "redis/limit_bytes": 2**30})
    folder.append(last)
    assert "256 MiB of 1024, 25%" in shown(tmp_path, capsys, monkeypatch, run="blue")


def test_json_has_the_same_and_nothing_that_is_no_json(tmp_path, capsys, monkeypatch) -> None:
    made_up(tmp_path)
    RunFolder.create("young", tmp_path).append(report("phase", 0.0, "loading"))
    found = json.loads(shown(tmp_path, capsys, monkeypatch, json=True), parse_constant=pytest.fail)
    assert list(found) == ["young", "blue"], "newest first"
    now = found["blue"]["now"]
    assert now["account_s"]["actor"]["compute"] == pytest.approx(0.7 * 4.0 * 30)
    assert now["queues"]["work"] == {"backlog": 12, "age_s": 1.4}
    assert (now["lag"], now["lag_bound"], now["live"], now["update"]) == (1, 1, False, 30)
    assert now["held_out"] == {"colour": 0.66, "jpeg_size": -26.9}
    assert found["young"]["now"]["update"] is None and found["young"]["ended"] is None


def test_while_a_run_can_be_reached_its_processes_say_how_much_each_role_does(tmp_path: Path) -> None:
    """The samples of two actors add up, a mean covers all values of a histogram, and another run's series are left out."""
    folder = made_up(tmp_path)
    pages = []
    for number, samples in enumerate((300, 100)):
        meter = PrometheusMeter()
        meter.add(metrics.SAMPLES, samples)
        for seconds in (0.2, 0.4):
            meter.add(metrics.WEIGHT_SYNC_S, seconds * (number + 1), role="actor")
        pages.append((discovery.labels("blue", f"actor-{number}", MetricsEndpoint("actor", "")), meter.page()))
    stranger = PrometheusMeter()
    stranger.add(metrics.SAMPLES, 10**9)
    pages.append((discovery.labels("red", "actor-0", MetricsEndpoint("actor", "")), stranger.page()))
    driver = PrometheusMeter()
    server, port = driver.serve(pages={"/metrics/all": lambda: ("text/plain", merged(pages).encode())})
    folder.note_metrics(discovery.groups("blue", {"driver": MetricsEndpoint("driver", f"127.0.0.1:{port}")}))
    with server:
        found = standing(folder)["now"]
    assert found["live"] and found["weight_sync_s"]["actor"] == pytest.approx(0.45)
    rate = found["samples_per_s"]["actor"]
    assert 400 / 3600 < rate < 400, "since this process started, within the hour"
    gone = standing(folder)["now"]
    assert not gone["live"] and "actor" not in gone["samples_per_s"], "the port is closed: the reports are all there is"


def test_a_finished_run_is_not_asked_anything(tmp_path: Path) -> None:
    folder = made_up(tmp_path, updates=50)
    folder.write_summary({"ended": "finished", "reward_after": {}, "reward_before": {}})
    found = standing(folder)
    assert found["ended"] == "finished" and not found["now"]["live"] and found["now"]["update"] == 50


def test_a_scalar_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    import random

    folder = made_up(tmp_path)
    odd = update(31, 50, 160.0, random.Random(0))
    odd.scalars["queue/work/age_s"] = float("nan")
    odd.scalars["account/actor/compute"] = float("nan")
    folder.append(odd)
    json.dumps(standing(folder)["now"], allow_nan=False)


DAMAGED = {
    "summary.json": [b"", b"[]", b"{}", b'{"ended": "fini', b"\xff\xfe\x00"],
    "metrics_targets.json": [b"", b"{}", b"[1]", b'[{"labels": {"worker": "driver"}}]'],
    "metrics.jsonl": [b"[]\n", b"\x00\x00\n"],
}
EACH_DAMAGE = [(name, content) for name, contents in DAMAGED.items() for content in contents]


@pytest.mark.parametrize(("name", "content"), EACH_DAMAGE)
def test_one_damaged_run_is_told_of_and_the_others_are_listed(
    tmp_path, capsys, monkeypatch, name: str, content: bytes
) -> None:
    blue = made_up(tmp_path)  # its process holds it
    torn = RunFolder.create("torn", tmp_path)
    torn.append(report("phase", 0.0, "loading"))
    (torn.path / name).write_bytes(content)
    lines = dict(line.split(": ", 1) for line in shown(tmp_path, capsys, monkeypatch).splitlines())
    assert lines["blue"].startswith("running (update 30 of 50, last report ")
    assert lines["torn"].startswith("damaged; ") and str(torn.path / name) in lines["torn"]
    found = json.loads(shown(tmp_path, capsys, monkeypatch, json=True))
    assert str(torn.path / name) in found["torn"]["damaged"] and found["blue"]["state"] == "running"
    blue.release()


@pytest.mark.parametrize(("name", "content"), EACH_DAMAGE)
def test_a_damaged_run_that_is_asked_for_is_an_error_with_the_file_and_the_remedy(
    tmp_path: Path, name: str, content: bytes
) -> None:
    folder = made_up(tmp_path)
    (folder.path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}.*; delete"):
        status.run(status.StatusOptions(run="blue", runs_dir=tmp_path))


def test_a_summary_of_an_older_drover_is_completed_from_the_reports(tmp_path, capsys, monkeypatch) -> None:
    made_up(tmp_path).write_summary({"ended": "finished"})
    assert shown(tmp_path, capsys, monkeypatch).startswith("blue: finished; 30 updates")


def test_a_run_whose_processes_answer_from_behind_a_proxy_is_asked_directly(tmp_path, monkeypatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    folder, meter = made_up(tmp_path), PrometheusMeter()
    page = merged([(discovery.labels("blue", "driver", MetricsEndpoint("driver", "")), meter.page())])
    server, port = meter.serve(pages={"/metrics/all": lambda: ("text/plain", page.encode())})
    folder.note_metrics(discovery.groups("blue", {"driver": MetricsEndpoint("driver", f"127.0.0.1:{port}")}))
    with server:
        assert standing(folder)["now"]["live"]
