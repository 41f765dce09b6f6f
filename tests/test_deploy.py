"""What operators take: read as data, compared with the code and with what we promise of it."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import PREFIX, Settings
from service.store.server import OPTIONS
from tests.dashboards import ANNOTATIONS, DASHBOARDS, PANELS, QUERIES, metrics_in
from tests.metric_families import series_names

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
GPU: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PROBE_PORT = re.findall(r"LEVIT_PROBE_PORT=(\d+)", DOCKERFILE)[0]
PROMETHEUS: dict[str, Any] = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())
GRAFANA = ROOT / "deploy/grafana"

RELEASE = re.compile(r"v?\d+\.\d+\.\d+\b")
"""What a tag begins with that is not moved to the next version."""
PASSWORD = re.compile(
    r"(?i:password|passwd|secret|token)\"?\s*[:=]\s*\"?(?!/run/secrets/)[\w]"
    r"|^\s*(?:requirepass|masterauth)\b|://[^/\s@]*:[^/\s@]+@|\s>(?!= )\S",
    re.MULTILINE,
)
"""Where something secret would be written out: a value, an address with a password, a user's."""


def test_compose_runs_what_the_readme_says() -> None:
    assert set(SERVICES) == {"api", "worker", "redis", "prometheus", "grafana"}
    assert SERVICES["api"]["command"] == ["api"]
    assert SERVICES["worker"]["command"] == ["worker"]


def test_only_the_api_and_grafana_are_published_and_only_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert published == {"api": ["127.0.0.1:8000:8000"], "grafana": ["127.0.0.1:3000:3000"]}


def test_redis_prometheus_and_the_worker_are_on_the_internal_network_only() -> None:
    assert COMPOSE["networks"]["internal"] == {"internal": True}
    inner = {name for name, service in SERVICES.items() if service["networks"] == ["internal"]}

    assert inner == {"redis", "prometheus", "worker"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_no_more_rights_than_it_needs(name: str) -> None:
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"] > 0
    assert service["mem_limit"]
    assert service["stop_grace_period"] == "30s"
    assert service["restart"] == "unless-stopped"
    assert not {"privileged", "cap_add", "devices", "pid", "ipc", "network_mode"} & set(service)


def test_nothing_secret_gets_into_the_image() -> None:
    first, *allowed = (ROOT / ".dockerignore").read_text().split()

    assert first == "*"
    assert not [line for line in allowed if line.startswith(("!deploy", "!*", "!."))]


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_that_a_container_writes_in_memory_can_be_run(name: str) -> None:
    for mount in SERVICES[name].get("tmpfs", []):
        assert {"noexec", "nosuid"} < set(mount.split(":")[1].split(","))


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"api", "worker"}))
def test_an_image_of_others_is_of_one_release_and_runs_as_an_ordinary_user(name: str) -> None:
    user, tag = SERVICES[name]["user"], SERVICES[name]["image"].split(":")[1]

    assert int(user.split(":")[0]) > 0
    assert RELEASE.match(tag)


def test_our_image_is_made_of_one_release() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)

    assert len(set(bases)) == 1
    assert all(RELEASE.match(base.split(":")[1]) for base in bases)


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"api"}))
def test_a_container_says_whether_it_is_healthy(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"


def test_what_must_last_lies_in_volumes() -> None:
    assert "state:/state" in SERVICES["worker"]["volumes"]
    assert "state:/state:ro" in SERVICES["api"]["volumes"]
    assert "redis:/data" in SERVICES["redis"]["volumes"]
    assert set(COMPOSE["volumes"]) == {"state", "redis", "prometheus", "grafana"}


def test_every_file_that_is_mounted_exists() -> None:
    mounted = [
        volume.split(":")[0] for service in SERVICES.values() for volume in service["volumes"]
    ]
    absent = [path for path in mounted if path.startswith("./") and not (ROOT / path).exists()]

    assert absent == []


@pytest.mark.parametrize("name", ["api", "worker"])
def test_compose_sets_only_settings_that_exist(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in SERVICES[name]["environment"].items():
        monkeypatch.setenv(variable, value)

    settings = Settings.read(host="0.0.0.0", state_dir="/state")  # noqa: S104  in a container

    assert settings.redis_url == f"redis://{name}@redis:6379/0"
    assert str(settings.redis_password_file) == f"/run/secrets/redis_{name}_password"


def test_no_container_serves_without_keys() -> None:
    for service in (*SERVICES.values(), *GPU["services"].values()):
        assert not {f"{PREFIX}INSECURE", f"{PREFIX}PUBLISHED_ON_LOOPBACK"} & set(
            service.get("environment", {})
        )
    assert f"{PREFIX}INSECURE" not in DOCKERFILE


def test_redis_keeps_what_it_is_given() -> None:
    lines = (ROOT / "deploy/redis.conf").read_text().splitlines()
    found = dict(line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))

    assert {name: found[name].strip('"') for name in OPTIONS} == OPTIONS
    assert found["dir"] == "/data"
    assert found["aclfile"] == "/run/secrets/redis_users"


def test_a_container_reads_the_secrets_it_needs_and_no_others() -> None:
    given = {name: set(service.get("secrets", [])) for name, service in SERVICES.items()}

    assert given == {
        "api": {"redis_api_password"},
        "worker": {"redis_worker_password"},
        "redis": {"redis_users", "redis_probe_password"},
        "prometheus": set(),
        "grafana": {"grafana_admin_password"},
    }
    assert COMPOSE["secrets"] == {
        name: {"file": f"./deploy/secrets/{name}"} for name in set().union(*given.values())
    }


def test_no_password_stands_in_a_file_of_ours() -> None:
    files = [ROOT / "docker-compose.yml", ROOT / "docker-compose.gpu.yml", ROOT / "Dockerfile"]
    files += [path for path in (ROOT / "deploy").rglob("*") if path.is_file()]
    shipped = {str(path.relative_to(ROOT)): path for path in files if "secrets" not in path.parts}
    found = {
        name: match[0]
        for name, path in shipped.items()
        if (match := PASSWORD.search(path.read_text(encoding="utf-8")))
    }

    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        "GF_SECURITY_ADMIN_PASSWORD: admin",
        "requirepass hunter2",
        "LEVIT_REDIS_URL: redis://api:hunter2@redis:6379/0",
        "user api on >hunter2 ~levit:*",
        'password = "hunter2"',
    ],
)
def test_a_password_would_be_noticed(line: str) -> None:
    assert PASSWORD.search(line)


def test_grafana_asks_for_a_password_that_is_in_no_file_of_ours() -> None:
    environment = SERVICES["grafana"]["environment"]

    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    secret = environment["GF_SECURITY_ADMIN_PASSWORD__FILE"]
    assert secret == "/run/secrets/grafana_admin_password"  # noqa: S105  a path
    assert "GF_SECURITY_ADMIN_PASSWORD" not in environment
    assert "deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_gpu_override_changes_the_worker_only() -> None:
    worker = GPU["services"]["worker"]
    device = worker["deploy"]["resources"]["reservations"]["devices"][0]

    assert set(GPU["services"]) == {"worker"}
    assert worker["environment"] == {"LEVIT_DEVICE": "cuda", "LEVIT_PRESET": "paper"}
    assert device["capabilities"] == ["gpu"]
    assert set(worker["build"]["args"]) <= set(re.findall(r"^ARG (\w+)=", DOCKERFILE, re.MULTILINE))


def test_the_image_is_built_apart_and_runs_as_nobody() -> None:
    _, build, final = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)

    assert "--require-hashes -r /build/requirements.lock" in build
    assert "pip install" not in final
    assert "\nUSER 10001:10001\n" in final
    assert "\nSTOPSIGNAL SIGTERM\n" in final
    assert "\nHEALTHCHECK " in final
    assert set(re.findall(rf"{PREFIX}(\w+)=", final)) <= {
        name.upper() for name in Settings.model_fields
    }


def test_prometheus_scrapes_both_processes_every_five_seconds() -> None:
    targets = {
        target
        for job in PROMETHEUS["scrape_configs"]
        for static in job["static_configs"]
        for target in static["targets"]
    }
    worker = Settings.model_fields["worker_metrics_port"].default

    assert PROMETHEUS["global"] == {"scrape_interval": "5s", "evaluation_interval": "15s"}
    assert targets == {f"api:{PROBE_PORT}", f"worker:{worker}"}
    assert {target.split(":")[0] for target in targets} <= set(SERVICES)


def test_prometheus_finds_the_alert_rules_beside_its_configuration() -> None:
    mounted = SERVICES["prometheus"]["volumes"]

    assert PROMETHEUS["rule_files"] == ["alerts.yml"]
    assert "./deploy/alerts.yml:/etc/prometheus/alerts.yml:ro" in mounted


def test_probes_use_the_listener_that_a_flood_does_not_reach() -> None:
    environment = SERVICES["api"]["environment"]

    assert f"http://127.0.0.1:{PROBE_PORT}/livez" in DOCKERFILE
    assert not [port for port in SERVICES["api"]["ports"] if port.endswith(f":{PROBE_PORT}")]
    assert environment["LEVIT_PROBE_HOST"] == "0.0.0.0"  # noqa: S104  of the container
    assert environment["LEVIT_ALLOWED_HOSTS"] == "api"


@pytest.mark.parametrize("query", QUERIES)
def test_the_dashboards_name_only_metrics_that_exist(query: str) -> None:
    asked = metrics_in(query)
    of_others = {name for name in asked if name.startswith("process_")} | {"up", "ALERTS"}

    assert asked
    assert asked <= series_names() | of_others


def test_a_misspelt_metric_would_be_noticed() -> None:
    assert not metrics_in("max(levit_expertz)") <= series_names()


@pytest.mark.parametrize(
    "metric",
    [
        "levit_experts",
        "levit_expansions_total",
        "levit_novelty",
        "levit_novelty_threshold",
        "levit_prequential_accuracy_ratio",
        "levit_class_prequential_accuracy_ratio",
        "levit_replay_samples",
        "levit_stream_backlog",
        "levit_predict_duration_seconds_bucket",
        "levit_snapshot_age_seconds",
        "levit_staleness_seconds",
        "levit_samples_learned_total",
        "levit_checkpoint_age_seconds",
        "levit_requests_refused_total",
        "levit_redis_memory_bytes",
        "levit_disk_free_bytes",
        "process_resident_memory_bytes",
    ],
)
def test_the_dashboards_show(metric: str) -> None:
    assert metric in set().union(*map(metrics_in, QUERIES))


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_says_what_it_shows_and_in_which_unit(name: str) -> None:
    panel = PANELS[name]

    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    assert all(target["legendFormat"] for target in panel["targets"])


def test_no_two_dashboards_or_panels_are_taken_for_one() -> None:
    assert set(DASHBOARDS) == {"overview", "learning", "operations"}
    assert len({board["uid"] for board in DASHBOARDS.values()}) == len(DASHBOARDS)
    assert len({board["title"] for board in DASHBOARDS.values()}) == len(DASHBOARDS)
    for board in DASHBOARDS.values():
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
        assert len({panel["title"] for panel in board["panels"]}) == len(board["panels"])


@pytest.mark.parametrize("name", DASHBOARDS)
def test_no_panel_covers_another(name: str) -> None:
    taken = [
        (x, y)
        for panel in DASHBOARDS[name]["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]

    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) < 24


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_asks_for_the_chosen_streams(name: str) -> None:
    (variable,) = DASHBOARDS[name]["templating"]["list"]
    asked = [
        target["expr"]
        for panel in DASHBOARDS[name]["panels"]
        for target in panel["targets"]
        if "stream" in target["legendFormat"]
    ]

    assert (variable["name"], variable["allValue"]) == ("stream", ".*")
    assert variable["definition"] == "label_values(levit_experts, stream)"
    assert asked
    assert [query for query in asked if 'stream=~"$stream"' not in query] == []


def test_expansions_are_marked_where_learning_is_shown() -> None:
    for name in ("overview", "learning"):
        marks = [one["expr"] for one in DASHBOARDS[name]["annotations"]["list"]]
        assert any("levit_expansions_total" in query for query in marks)


def test_grafana_finds_its_datasource_and_dashboards() -> None:
    provisioning = GRAFANA / "provisioning"
    source = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())
    provider = yaml.safe_load((provisioning / "dashboards/levit.yml").read_text())["providers"][0]
    folder = provider["options"]["path"]

    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    asked = [one["datasource"]["uid"] for one in (*PANELS.values(), *ANNOTATIONS)]
    assert set(asked) == {source["datasources"][0]["uid"]}
    assert f"./deploy/grafana/dashboards:{folder}:ro" in SERVICES["grafana"]["volumes"]
    assert provider["allowUiUpdates"] is False
