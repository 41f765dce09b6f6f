"""Debian's Prometheus with the shipped configuration, scraping a service that learns.

Only the targets and the interval are replaced. Every query of the dashboard must return data.
"""

import json
import math
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from service.client import Client
from service.demo.data import load_data
from service.demo.process import free_port, running_service
from tests.system_packages import require

DEPLOY = Path(__file__).parent.parent / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/levit.json").read_text())
QUERIES = [
    *(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]),
    *(annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]),
]
LEARNER = {
    "statistics_bytes": 2**20,
    "budget": 8,
    "capacity": 200,
    "false_expansion_probability": 0.5,
    "false_expansion_horizon": 100,
}
"""Small, and expanding on little evidence."""
LIMIT_S = 45.0


@contextmanager
def prometheus(home: Path, targets: dict[str, str]) -> Iterator[httpx.Client]:
    """Yield a client of a Prometheus that scrapes `targets`, one for each shipped job."""
    program = require("prometheus")
    shipped = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    shipped["global"]["scrape_interval"] = "1s"
    for job in shipped["scrape_configs"]:
        job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
    (home / "prometheus.yml").write_text(yaml.safe_dump(shipped))
    address = f"127.0.0.1:{free_port(9090)}"
    command = [
        program,
        f"--config.file={home / 'prometheus.yml'}",
        f"--storage.tsdb.path={home / 'tsdb'}",
        f"--web.listen-address={address}",
    ]
    with (home / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}") as client:
            yield client
    finally:
        process.terminate()
        process.wait(10)


def targets_up(client: httpx.Client) -> int:
    """Return how many targets Prometheus has scraped with success."""
    try:
        answer = client.get("/api/v1/targets").raise_for_status()
    except httpx.HTTPError:  # it is still starting
        return 0
    found = answer.json()["data"]["activeTargets"]
    return sum(target["health"] == "up" for target in found)


def has_data(client: httpx.Client, query: str, *, since: float) -> bool:
    """Say whether a query returned any number since a time."""
    span: dict[str, str | float] = {
        "query": query,
        "start": since,
        "end": time.time(),
        "step": 1,
    }
    answer = client.get("/api/v1/query_range", params=span).json()
    assert answer["status"] == "success", answer
    series = answer["data"]["result"]
    return any(math.isfinite(float(value)) for one in series for _, value in one["values"])


def wait_for(condition: Callable[[], bool], *, limit_s: float = LIMIT_S) -> None:
    """Wait until `condition()` holds, or for so long at most."""
    deadline = time.monotonic() + limit_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.5)


def test_the_shipped_configuration_is_valid() -> None:
    done = subprocess.run(
        [require("promtool"), "check", "config", DEPLOY / "prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_every_query_of_the_dashboard_returns_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("prometheus")
    monkeypatch.chdir(tmp_path)
    began = time.time()
    worker_port = free_port(9101)
    data = load_data("digits", None, limit=500)
    with running_service(LEARNER | {"worker_metrics_port": worker_port}) as url:
        targets = {"api": url.removeprefix("http://"), "worker": f"127.0.0.1:{worker_port}"}
        with prometheus(tmp_path, targets) as client, Client(url) as levit:
            wait_for(lambda: targets_up(client) == 2)
            assert targets_up(client) == 2

            def without_data() -> list[str]:
                levit.predict(data.x_test[:20])
                return [query for query in QUERIES if not has_data(client, query, since=began)]

            for at in range(0, len(data.x_train), 10):
                levit.observe(data.x_train[at : at + 10], data.y_train[at : at + 10])
                time.sleep(0.3)  # slower than scrapes, so that expansions fall between them
            wait_for(lambda: not without_data())

            assert without_data() == []
            assert not has_data(client, "levit_no_such_metric", since=began)
