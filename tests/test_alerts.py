"""The alerts: valid, explained in the runbook, and fired by what they are for."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import typer
import yaml

from service import cli
from service.client import Client
from service.demo.process import free_port
from service.engine.protocol import Array
from service.settings import KEY, PREFIX, Settings
from service.store.link import connect
from service.store.names import DEFAULT as names
from tests.conftest import MakeSettings
from tests.dashboards import DASHBOARDS, PANELS, metrics_in
from tests.listening import listening
from tests.metric_families import series_names
from tests.scraping import DEPLOY, fired, firing, has_data, prometheus, wait_for
from tests.system_packages import require

ROOT = Path(__file__).parent.parent
RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
}
RUNBOOK = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
OF_THE_CAP = {"LevitExpertCapNear", "LevitExpansionsRefused"}
"""Provoked in `tests/test_prometheus.py`, where a real learner wants to grow."""


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [require("promtool"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# What they say


@pytest.mark.parametrize("name", RULES)
def test_an_alert_says_what_it_means_and_where_to_read_on(name: str) -> None:
    rule = RULES[name]
    said = rule["annotations"]

    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert said["summary"]
    assert said["description"].endswith(".")
    assert said["runbook"] == f"docs/runbook.md#{name.lower()}"
    assert f"\n## {name}\n" in RUNBOOK


@pytest.mark.parametrize("name", RULES)
def test_an_alert_asks_only_for_metrics_that_exist(name: str) -> None:
    asked = metrics_in(RULES[name]["expr"])

    assert asked
    assert asked <= series_names() | {"up"}


def test_the_runbook_has_a_section_for_each_alert_and_no_other() -> None:
    assert set(re.findall(r"^## (Levit\w+)$", RUNBOOK, re.MULTILINE)) == set(RULES)


def test_the_runbook_names_only_commands_and_settings_that_exist() -> None:
    commands = re.findall(r"(?<=`levit )[a-z][a-z -]*[a-z]", RUNBOOK)
    known = {KEY, *(PREFIX + field.upper() for field in Settings.model_fields)}

    assert commands
    assert [command for command in commands if not is_command(command)] == []
    assert set(re.findall(rf"{PREFIX}\w+", RUNBOOK)) <= known
    assert metrics_in(RUNBOOK) <= series_names() | {"up"}


def test_the_runbook_names_only_panels_and_dashboards_that_exist() -> None:
    titles = [one["title"] for one in (*PANELS.values(), *DASHBOARDS.values())]
    named = re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", " ".join(RUNBOOK.split()))

    assert len(named) > 10
    assert [one for one in named if not any(title.startswith(one) for title in titles)] == []


def is_command(words: str) -> bool:
    """Say whether `levit` has a command of these words."""
    found: Any = typer.main.get_command(cli.app)
    for word in words.split(" -", maxsplit=1)[0].split():
        if word not in getattr(found, "commands", {}):
            return False
        found = found.commands[word]
    return not hasattr(found, "commands")


def test_a_command_that_does_not_exist_would_be_noticed() -> None:
    assert is_command("quarantine list")
    assert not is_command("quarantine")
    assert not is_command("quarantine mend")


# When they fire, with the durations as shipped


def test_the_alerts_are_valid() -> None:
    done = promtool("check", "rules", DEPLOY / "alerts.yml")

    assert done.returncode == 0, done.stderr


def test_each_alert_fires_when_it_should_and_not_before() -> None:
    told = (ROOT / "tests/alerts.yml").read_text()
    done = promtool("test", "rules", ROOT / "tests/alerts.yml")

    assert done.returncode == 0, done.stderr
    assert [name for name in RULES if f'alertname="{name}"' not in told] == []


@pytest.mark.parametrize(
    ("sound", "flawed"),
    [("for: 1m", "for: 5m"), ("for: 5m", "for: 0s"), ("> 0.15", "> 0.25"), ("> 5", "> 8")],
)
def test_another_duration_or_bound_would_be_noticed(
    tmp_path: Path, sound: str, flawed: str
) -> None:
    rules = (DEPLOY / "alerts.yml").read_text().replace(sound, flawed)
    (tmp_path / "rules.yml").write_text(rules)
    cases = (ROOT / "tests/alerts.yml").read_text().replace("../deploy/alerts.yml", "rules.yml")
    (tmp_path / "cases.yml").write_text(cases)

    assert promtool("test", "rules", tmp_path / "cases.yml").returncode == 1


# What makes them fire


@dataclass(frozen=True)
class Watched:
    """A service without its worker, and a Prometheus that scrapes both."""

    settings: Settings
    worker_port: int
    levit: Client
    prometheus: httpx.Client
    since: float

    def fires(self, *names: str) -> bool:
        """Say whether alerts fire, after having given them time."""
        wait_for(lambda: firing(self.prometheus) >= set(names))
        return firing(self.prometheus) >= set(names)


@pytest.fixture
def watched(tmp_path: Path, settings: MakeSettings) -> Iterator[Watched]:
    """A service whose disk has less than twice the room it needs, and its Prometheus."""
    require("prometheus")
    port = free_port(0)
    floor = int(0.6 * shutil.disk_usage(tmp_path).free)
    served = settings(insecure=True, max_backlog=40, disk_floor_bytes=floor)
    with listening(served) as api, Client(f"http://127.0.0.1:{api.port}") as levit:
        targets = {"api": f"127.0.0.1:{api.port}", "worker": f"127.0.0.1:{port}"}
        with prometheus(tmp_path, targets) as client:
            yield Watched(api, port, levit, client, time.time())


@contextmanager
def worker(watched: Watched) -> Iterator[None]:
    """Run a worker with the toy engine, which ends with the block."""
    environment = {
        "LEVIT_STATE_DIR": str(watched.settings.state_dir),
        "LEVIT_REDIS_URL": str(watched.settings.redis_url),
        "LEVIT_WORKER_METRICS_PORT": str(watched.worker_port),
        "LEVIT_CHECKPOINT_INTERVAL_S": "0.2",
        "LEVIT_SNAPSHOT_INTERVAL_S": "0.2",
        "PATH": os.environ["PATH"],
    }
    command = [sys.executable, "-m", "tests.toy_worker", "0"]
    with subprocess.Popen(command, env=environment, cwd=ROOT) as process:
        try:
            yield
        finally:
            process.terminate()


@contextmanager
def full_and_forgetful(redis: Any) -> Iterator[None]:  # noqa: ANN401  redis-py's types are a union over protocols
    """Let a Redis be at 90 % of its memory, and keep less than was promised."""
    limit = redis.config_get("maxmemory")["maxmemory"]
    redis.config_set("maxmemory", int(redis.info("memory")["used_memory"] / 0.9))
    redis.config_set("appendfsync", "everysec")
    try:
        yield
    finally:
        redis.config_set("maxmemory", limit)
        redis.config_set("appendfsync", "always")


def images(n: int, level: int) -> Array:
    """Return n grey images of about one brightness."""
    noise = np.random.default_rng(level).integers(0, 10, (n, 8, 8))
    return (level + noise).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_other_alert_fires_by_its_cause(watched: Watched, redis_server: str) -> None:
    levit, client = watched.levit, watched.prometheus
    with worker(watched):
        for n in (1, 200, 200, 200):  # dark or bright: easily told
            levit.observe(images(n, 20), [0] * n)
            levit.observe(images(n, 200), [1] * n)
        settled = "count_over_time(levit_prequential_accuracy_ratio[30s]) >= 10"
        wait_for(lambda: has_data(client, settled, since=watched.since))
        wait_for(lambda: firing(client) == {"LevitDiskNear"})
        assert firing(client) == {"LevitDiskNear"}  # by the floor; nothing else is wrong

        for _ in range(8):  # the first pixel is one that the toy engine refuses
            levit.observe(np.full((1, 8, 8), 255, np.uint8), [1])
        assert watched.fires("LevitQuarantineGrowing")

        for label in range(2, 8):  # each class is new
            levit.observe(images(256, 30 * label), [label] * 256)
        assert watched.fires("LevitAccuracyDropped")

    for level in range(36):
        levit.observe(images(1, level), [0])
    with closing(connect(redis_server)) as redis:
        with full_and_forgetful(redis):
            assert watched.fires("LevitRedisMemoryNear", "LevitRedisNotReady")
            assert watched.fires("LevitProcessDown", "LevitBacklogGrowing", "LevitSnapshotStale")
        redis.xtrim(names.log, maxlen=3, approximate=False)
    with worker(watched):
        assert watched.fires("LevitWorkerStopped")

    provoked = set(RULES) - OF_THE_CAP  # the last one is stored a moment after it fires
    wait_for(lambda: fired(client, since=watched.since) >= provoked)
    assert fired(client, since=watched.since) >= provoked
