"""The shipped dashboards, and what their panels ask of Prometheus."""

import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "deploy/grafana/dashboards"
DASHBOARDS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted(FOLDER.glob("*.json"))
}
PANELS: dict[str, dict[str, Any]] = {
    f"{name}: {panel['title']}": panel
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
}
ANNOTATIONS = [one for board in DASHBOARDS.values() for one in board["annotations"]["list"]]


def substituted(query: str) -> str:
    """Return a query as Grafana asks it when all streams are chosen."""
    return query.replace("$stream", ".*")


QUERIES = sorted(
    {substituted(target["expr"]) for panel in PANELS.values() for target in panel["targets"]}
    | {substituted(annotation["expr"]) for annotation in ANNOTATIONS}
)


def metrics_in(query: str) -> set[str]:
    """Return the metrics that a PromQL query names: ours, those of processes, Prometheus' own."""
    return set(re.findall(r"\b(?:levit_\w+|process_\w+|up|ALERTS)\b", query))
