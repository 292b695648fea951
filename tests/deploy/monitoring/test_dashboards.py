"""Dashboards and alert rules name only declared metrics; the files in the repository equal the generator's output."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from drover.common.exporter import PROCESS_METRICS
from drover.common.metrics import ALL, LABEL_VALUES, Kind
from drover.deploy.monitoring import dashboards
from drover.deploy.monitoring.panels import learning, service

PROMETHEUS = Path(dashboards.__file__).with_name("prometheus")
NAMES = re.compile(r"\b(?:drover|process)_\w+")
TARGET_LABELS = {"run", "role", "worker", "le"}

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")


def served() -> set[str]:
    """Every name of a series that a role can serve."""
    found = set(PROCESS_METRICS)
    for metric in ALL:
        histogram = metric.kind is Kind.HISTOGRAM
        found |= {f"{metric.name}{part}" for part in ("_bucket", "_sum", "_count")} if histogram else {metric.name}
    return found


def expressions() -> list[str]:
    """The queries of all panels and of the variables."""
    found = [q.expression for row in (*learning(), *service()) for panel in row.panels for q in panel.queries]
    made = dashboards.dashboards().values()
    return found + [v["query"]["query"] for one in made for v in one["templating"]["list"] if v["type"] == "query"]


def rules() -> list[dict[str, Any]]:
    parsed = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())
    return [rule for group in parsed["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("name", sorted(dashboards.dashboards()))
def test_the_file_in_the_tree_is_what_the_generator_makes(name: str) -> None:
    assert (dashboards.FOLDER / name).read_text() == dashboards.written(dashboards.dashboards()[name]), (
        "run: python -m drover.deploy.monitoring.dashboards"
    )
    assert {path.name for path in dashboards.FOLDER.iterdir()} == set(dashboards.dashboards())


@pytest.mark.parametrize("expression", [*expressions(), *(rule["expr"] for rule in rules())])
def test_no_expression_names_a_metric_or_a_label_that_does_not_exist(expression: str) -> None:
    named = set(NAMES.findall(expression))
    assert named and named <= served()
    labels = set(re.findall(r'[{,](\w+)=~?"', expression))
    labels |= {label.strip() for by in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression) for label in by.split(",")}
    assert labels <= TARGET_LABELS | set(LABEL_VALUES)


def test_a_misspelt_metric_would_be_found() -> None:
    assert not set(NAMES.findall('rate(drover_update_total{run="x"}[1m])')) <= served()


def test_every_declared_metric_is_on_a_panel() -> None:
    shown = {name for expression in expressions() for name in NAMES.findall(expression)}
    stems = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert {metric.name for metric in ALL} - stems - shown == set()


def test_panels_fill_the_grid_without_overlap_and_are_explained() -> None:
    for made in dashboards.dashboards().values():
        taken: set[tuple[int, int]] = set()
        assert len({panel["id"] for panel in made["panels"]}) == len(made["panels"])
        for panel in made["panels"]:
            place = panel["gridPos"]
            cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
            assert not cells & taken and place["x"] + place["w"] <= 24
            taken |= cells
            assert panel["type"] == "row" or (panel["description"] and panel["fieldConfig"]["defaults"]["unit"])


def test_grafana_is_provisioned_without_a_click() -> None:
    folder = dashboards.FOLDER.parent / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((folder / "dashboards" / "drover.yaml").read_text())["providers"]
    assert source["type"] == "prometheus" and source["isDefault"]
    assert provider["type"] == "file" and provider["options"]["path"].endswith("/dashboards/drover")
    for made in dashboards.dashboards().values():
        variables = {variable["name"]: variable for variable in made["templating"]["list"]}
        assert variables["source"]["query"] == source["type"], "every panel asks the chosen Prometheus"
        asked = {target["datasource"]["uid"] for panel in made["panels"] for target in panel.get("targets", [])}
        assert asked == {"${source}"}
        used = set(re.findall(r"\$(\w+)", json.dumps([panel.get("targets") for panel in made["panels"]])))
        assert used <= variables.keys()


def test_every_alert_says_what_to_do_and_how_bad_it_is() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert "{{ $labels.run }}" in rule["annotations"]["summary"] and rule["annotations"]["description"]


@needs_promtool
def test_prometheus_accepts_configuration_and_rules() -> None:
    done = subprocess.run(
        ["promtool", "check", "config", PROMETHEUS / "prometheus.yml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_every_panel_asks_in_valid_promql(tmp_path: Path) -> None:
    asked = [expression for expression in expressions() if not expression.startswith("label_values")]
    filled = [re.sub(r"\$(cpu|gpu)_hour", "2.5", expression.replace("$window", "1m")) for expression in asked]
    rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(filled)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True)
    assert done.returncode == 0 and f"{len(asked)} rules found" in done.stdout, done.stdout + done.stderr


@needs_promtool
def test_every_alert_fires_when_it_should_and_is_silent_when_it_should_not() -> None:
    cases = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    expected = [(test["alertname"], "exp_alerts" in test) for case in cases for test in case["alert_rule_test"]]
    for rule in rules():
        assert {(rule["alert"], True), (rule["alert"], False)} <= set(expected), rule["alert"]
    done = subprocess.run(["promtool", "test", "rules", PROMETHEUS / "alerts_test.yml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
