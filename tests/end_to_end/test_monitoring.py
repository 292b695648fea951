"""A real Prometheus finds a real run by itself, and every panel of the dashboards has data."""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from drover.deploy.monitoring import dashboards
from drover.deploy.monitoring.panels import learning, service
from tests.end_to_end.service import PATIENCE_S, SLOW_TOY, Train, drover

pytestmark = [
    pytest.mark.service,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus (Debian: prometheus)"),
]

SHIPPED = Path(dashboards.__file__).with_name("prometheus")
NOT_HERE = {"Reward hacking: gain of the learned reward minus gain of the true one"}  # this run watches for none
VARIABLES = {"$window": "20s", "$run": "run", "$cpu_hour": "0.05", "$gpu_hour": "2.5"}

SERIES = 'group by (__name__, role, worker, reward, part, stream, reader) ({__name__=~"drover_.+",run="RUN"})'


def test_prometheus_finds_every_role_by_itself_and_every_panel_has_data(tmp_path: Path) -> None:
    port = free_port()
    arguments = ("--metrics-port", str(port), "--iterations", "4000", "--max-lag", "1")
    arguments += ("--evaluators", "1", "--evaluate-every", "4")
    with Train(SLOW_TOY, *arguments, runs_dir=tmp_path) as run, Prometheus.started(tmp_path, port) as prometheus:
        run.await_workers("actor-0", "evaluator-0", "point-0", "learner-0", "driver")
        run.await_update(5)

        targets = prometheus.until(lambda: up(prometheus), lambda found: len(found) == 5)
        assert targets == {
            ("actor", "actor-0"),
            ("evaluator", "evaluator-0"),
            ("reward", "point-0"),
            ("learner", "learner-0"),
            ("driver", "driver"),
        }

        for row in (*learning(), *service()):
            for panel in row.panels:
                for query in panel.queries:
                    has_data(prometheus, panel.title, filled(query.expression))

        for title in ("Actors", "Reward servers", "Learner", "Evaluators"):
            parts = prometheus.query(filled(expression(title)))
            assert sum(value for _, value in parts) == pytest.approx(1.0, abs=1e-6), (title, parts)
        unaccounted = prometheus.query(filled(expression("Issued less ended less in flight")))
        assert [value for _, value in unaccounted] == [0.0]

        rules = prometheus.ask("rules")["groups"][0]["rules"]
        assert len(rules) >= 10 and {rule["health"] for rule in rules} == {"ok"}
        firing = [rule["name"] for rule in rules if rule["state"] == "firing"]
        assert "DroverOffPolicyAtFirst" not in firing and "DroverRedisNearlyFull" not in firing

        # A PodMonitor, which reads the driver's page alone, gets the same series as from the discovered targets.
        both = prometheus.until(
            lambda: [prometheus.query(filled(SERIES.replace("RUN", run))) for run in ("page", "run")],
            lambda found: keys(found[0]) == keys(found[1]),  # a new series may be scraped in one place first
            what="the same series on one page as from every role",
        )
        assert len(both[0]) > 60

        status = json.loads(drover("status", "run", "--runs-dir", str(tmp_path), "--json").stdout)["run"]
        assert status["ended"] is None and status["now"]["live"]
        assert {"actor", "evaluator", "point", "learner"} == status["now"]["samples_per_s"].keys()
        assert all(value > 0 for value in status["now"]["samples_per_s"].values())
        assert status["now"]["lag_bound"] == 1 and status["now"]["rewards"]["point"] < 0
        assert status["now"]["queues"].keys() == {"work", "evaluation", "rollouts", "measurements", "point"}
        shown = drover("status", "run", "--runs-dir", str(tmp_path)).stdout
        assert all(word in shown for word in ("throughput", "learner's time", "weight sync", "redis", "queues")), shown


class Prometheus:
    """Debian's, with the configuration that is shipped, only faster and on other ports."""

    def __init__(self, address: str) -> None:
        self._address = address

    @classmethod
    @contextmanager
    def started(cls, folder: Path, driver_port: int) -> Iterator[Prometheus]:
        config = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(SHIPPED / name) for name in config["rule_files"]]
        (job,) = config["scrape_configs"]
        url = job["http_sd_configs"][0]["url"].replace("9464", str(driver_port))
        job["http_sd_configs"] = [{"url": url, "refresh_interval": "1s"}]
        config["scrape_configs"].append(
            {
                "job_name": "as a PodMonitor does",
                "metrics_path": "/metrics/all",
                "honor_labels": True,
                "static_configs": [{"targets": [f"127.0.0.1:{driver_port}"]}],
                "metric_relabel_configs": [{"target_label": "run", "replacement": "page"}],
            }
        )
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        address = f"127.0.0.1:{free_port()}"
        with (folder / "prometheus.log").open("wb") as log:
            process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'tsdb'}",
                    f"--web.listen-address={address}",
                ],
                stdout=log,
                stderr=log,
            )
        try:
            yield cls(address)
        finally:
            process.terminate()
            process.wait(30)

    def ask(self, what: str, **parameters: str) -> Any:
        url = f"http://{self._address}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.loads(answer.read())["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """(labels, value) of each series."""
        data = self.ask("query", query=expression)
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(series["metric"], float(series["value"][1])) for series in data["result"]]

    def until(self, ask: Callable[[], Any], enough: Callable[[Any], bool], what: str = "an answer") -> Any:
        """The answer, once it is ``enough``."""
        gives_up_s, found = time.monotonic() + PATIENCE_S / 4, None
        while time.monotonic() < gives_up_s:
            try:
                if enough(found := ask()):
                    return found
            except ConnectionError:
                pass  # it is starting
            except urllib.error.HTTPError as error:
                raise AssertionError(f"{what}: {error.read().decode()}") from error
            except urllib.error.URLError:
                pass
            time.sleep(0.5)
        raise AssertionError(f"{what}: {found}")


def up(prometheus: Prometheus) -> set[tuple[str, str]]:
    """(role, worker) of the discovered targets that answer."""
    found = prometheus.ask("targets", state="active")["activeTargets"]
    mine = [target for target in found if target["labels"]["job"] == "drover" and target["health"] == "up"]
    return {(target["labels"]["role"], target["labels"]["worker"]) for target in mine}


def has_data(prometheus: Prometheus, title: str, expression: str) -> None:
    """Assert that some series of the panel is a finite number and none is infinite. The mean of an idle role is not a number."""
    found = prometheus.until(
        lambda: prometheus.query(expression),
        lambda found: title in NOT_HERE or any(math.isfinite(value) for _, value in found),
        what=f"{title}: {expression}",
    )
    assert not any(math.isinf(value) for _, value in found), (title, found)


def filled(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def expression(title: str) -> str:
    """The query of the panel with that title, which has only one."""
    (found,) = [p.queries[0].expression for row in (*learning(), *service()) for p in row.panels if p.title == title]
    return found


def keys(found: list[tuple[dict[str, str], float]]) -> set[tuple[tuple[str, str], ...]]:
    return {tuple(sorted(labels.items())) for labels, _ in found}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
