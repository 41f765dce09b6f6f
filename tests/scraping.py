"""Debian's Prometheus with the shipped configuration and rules, on a clock that runs faster.

Only targets, intervals and the durations of the rules are replaced.
"""

import math
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from service.demo.process import free_port
from tests.system_packages import require

DEPLOY = Path(__file__).parent.parent / "deploy"
FACTOR = 120
"""By how much the durations of the rules are shortened: an hour is half a minute."""
EVERY = "1s"
"""Between scrapes, and between looks at the rules."""
LIMIT_S = 60.0
_MS = {"s": 1000, "m": 60_000, "h": 3_600_000}
_SECONDS = re.compile(r"(?<=\], )\d+|(?<=_seconds\) > )\d+")
"""Where an expression means seconds: how far it looks ahead, and how old something may be."""


def shortened(rules: dict[str, Any], factor: int) -> dict[str, Any]:
    """Return rules of which every duration is divided by `factor`."""
    groups = [
        {**group, "rules": [_faster(rule, factor) for rule in group["rules"]]}
        for group in rules["groups"]
    ]
    return {"groups": groups}


def _faster(rule: dict[str, Any], factor: int) -> dict[str, Any]:
    def milliseconds(duration: re.Match[str]) -> str:
        return f"{int(duration[1]) * _MS[duration[2]] // factor}ms"

    windows = re.sub(r"(?<=\[)(\d+)([smh])(?=\])", milliseconds, rule["expr"])
    expression = _SECONDS.sub(lambda found: str(int(found[0]) / factor), windows)
    wait = re.sub(r"^(\d+)([smh])$", milliseconds, rule.get("for", "0s"))
    return {**rule, "expr": expression, "for": wait}


@contextmanager
def prometheus(home: Path, targets: dict[str, str]) -> Iterator[httpx.Client]:
    """Yield a client of a Prometheus that scrapes `targets`, one for each shipped job."""
    program = require("prometheus")
    shipped = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    shipped["global"] = {"scrape_interval": EVERY, "evaluation_interval": EVERY}
    for job in shipped["scrape_configs"]:
        job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
    for name in shipped["rule_files"]:
        rules = shortened(yaml.safe_load((DEPLOY / name).read_text()), FACTOR)
        (home / name).write_text(yaml.safe_dump(rules))
    (home / "prometheus.yml").write_text(yaml.safe_dump(shipped))
    print(f"durations of the rules are divided by {FACTOR}")  # noqa: T201  for who reads -s
    address = f"127.0.0.1:{free_port(0)}"
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
            wait_for(lambda: _ready(client))
            yield client
    finally:
        process.terminate()
        process.wait(10)


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").is_success
    except httpx.TransportError:
        return False


def targets_up(client: httpx.Client) -> int:
    """Return how many targets Prometheus has scraped with success."""
    found = client.get("/api/v1/targets").json()["data"]["activeTargets"]
    return sum(target["health"] == "up" for target in found)


def has_data(client: httpx.Client, query: str, *, since: float) -> bool:
    """Say whether a query returned any number since a time."""
    return any(
        math.isfinite(float(value))
        for one in _series(client, query, since)
        for _, value in one["values"]
    )


def fired(client: httpx.Client, *, since: float) -> set[str]:
    """Return the alerts that have fired since a time, however shortly."""
    span = math.ceil(time.time() - since)
    query = f'max_over_time(ALERTS{{alertstate="firing"}}[{span}s])'
    answer = client.get("/api/v1/query", params={"query": query}).json()
    return {one["metric"]["alertname"] for one in answer["data"]["result"]}


def firing(client: httpx.Client) -> set[str]:
    """Return the alerts that fire now."""
    answer = client.get("/api/v1/alerts").json()
    return {
        alert["labels"]["alertname"]
        for alert in answer["data"]["alerts"]
        if alert["state"] == "firing"
    }


def wait_for(condition: Callable[[], bool], *, limit_s: float = LIMIT_S) -> None:
    """Wait until `condition()` holds, or for so long at most."""
    deadline = time.monotonic() + limit_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.5)


def _series(client: httpx.Client, query: str, since: float) -> list[dict[str, Any]]:
    span: dict[str, str | float] = {
        "query": query,
        "start": since,
        "end": time.time(),
        "step": 1,
    }
    answer = client.get("/api/v1/query_range", params=span).json()
    assert answer["status"] == "success", answer
    series: list[dict[str, Any]] = answer["data"]["result"]
    return series
