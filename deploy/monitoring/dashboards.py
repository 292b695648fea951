"""Makes Grafana's dashboards from the metric declarations.

``python -m drover.deploy.monitoring.dashboards`` writes deploy/monitoring/grafana/dashboards/.
A panel queries declared metrics only, and takes its unit and its description from them. The files are checked in, so
that Grafana can be given the folder; a test fails if they differ from this module's output.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drover.common import metrics
from drover.deploy.monitoring.panels import Panel, Row, learning, service

FOLDER = Path(__file__).with_name("grafana") / "dashboards"
UNITS = {"seconds": "s", "bytes": "bytes", "ratio": "percentunit", "": "short"}
HEIGHT, WIDTH = 8, 24  # height of a panel and width of the grid, in Grafana's units

SOURCE = {"type": "prometheus", "uid": "${source}"}
LINK = {
    "type": "dashboards",
    "title": "drover",
    "tags": ["drover"],
    "icon": "dashboard",
    "tooltip": "",
    "asDropdown": False,
    "targetBlank": False,
    "keepTime": True,
    "includeVars": True,
}


def dashboards() -> dict[str, dict[str, Any]]:
    """Return file name -> dashboard as Grafana imports it."""
    return {
        "drover-learning.json": dashboard("drover-learning", "drover: learning of a run", learning()),
        "drover-service.json": dashboard("drover-service", "drover: where time, memory and money go", service()),
    }


def dashboard(uid: str, title: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Make one dashboard, its panels laid out in rows from left to right."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
            }
        )
        x, y = 0, y + 1
        for panel in row.panels:
            if x + panel.span > WIDTH:
                x, y = 0, y + HEIGHT
            panels.append(_panel(panel, len(panels) + 1, {"x": x, "y": y, "w": panel.span, "h": HEIGHT}))
            x += panel.span
        y += HEIGHT
    return {
        "uid": uid,
        "title": title,
        "tags": ["drover"],
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [LINK],
        "templating": {"list": _variables()},
        "panels": panels,
    }


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    unit = panel.unit if panel.unit is not None else UNITS.get(panel.of[0].unit, "short")
    custom: dict[str, Any] = {"lineWidth": 1, "fillOpacity": 60 if panel.stacked else 5, "showPoints": "never"}
    if panel.stacked:
        custom["stacking"] = {"mode": "normal", "group": "A"}
    defaults: dict[str, Any] = {"unit": unit, "custom": custom}
    if panel.most is not None:
        defaults |= {"min": 0, "max": panel.most}
    said = " ".join([*(metric.help for metric in panel.of), panel.note]).strip()
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": said,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": query.expression, "legendFormat": query.legend}
            for i, query in enumerate(panel.queries)
        ],
    }


def _variables() -> list[dict[str, Any]]:
    windows = ["30s", "1m", "5m", "15m", "1h"]
    return [
        {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0},
        {
            "name": "run",
            "label": "Run",
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": f"label_values({metrics.WORKERS.name}, run)", "refId": "run"},
            "refresh": 2,
            "sort": 2,
        },
        {
            "name": "window",
            "label": "Rates over",
            "type": "custom",
            "query": ",".join(windows),
            "current": {"text": "1m", "value": "1m"},
            "options": [{"text": window, "value": window, "selected": window == "1m"} for window in windows],
        },
        *(
            {
                "name": name,
                "label": label,
                "type": "textbox",
                "query": price,
                "current": {"text": price, "value": price},
                "options": [{"text": price, "value": price, "selected": True}],
            }
            for name, label, price in (("cpu_hour", "CPU hour", "0.05"), ("gpu_hour", "GPU hour", "2.5"))
        ),
    ]


def written(dashboard: dict[str, Any]) -> str:
    """Return the text of the dashboard's file."""
    return json.dumps(dashboard, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, found in dashboards().items():
        (FOLDER / name).write_text(written(found))


if __name__ == "__main__":
    main()
