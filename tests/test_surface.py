"""What users hold on to: routes, codes, settings, metrics, the front door; and the code's form.

A failure means that the surface changed. If it should, add the name here and in README.
"""

import ast
import re
from pathlib import Path
from typing import cast

import pytest

import learner
from service.api.app import create_app
from service.engine.protocol import Engines
from service.settings import PREFIX, Settings
from tests.metric_families import families

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SOURCES = sorted([*ROOT.glob("learner/**/*.py"), *ROOT.glob("service/**/*.py")])
LONG_MODULES: dict[str, str] = {}
"""Modules over 300 lines, each with its reason."""
MOST_LINES = 300

ROUTES = {
    "GET /",
    "GET /checkpoints",
    "GET /events",
    "GET /experts",
    "GET /experts/{expert}/samples",
    "GET /live",
    "GET /livez",
    "GET /metrics",
    "GET /observations/{batch_id}",
    "GET /quarantine",
    "GET /quarantine/{batch_id}",
    "GET /readyz",
    "GET /snapshots",
    "GET /streams",
    "GET /timeline",
    "POST /checkpoints/{seq}/pin",
    "POST /checkpoints/{seq}/rollback",
    "POST /labels",
    "POST /observe",
    "POST /predict",
    "POST /quarantine/{batch_id}/drop",
    "POST /quarantine/{batch_id}/retry",
    "POST /resync",
    "POST /streams",
}
PROCESS = {
    "GET /",
    "GET /livez",
    "GET /metrics",
    "GET /readyz",
    "GET /streams",
    "POST /streams",
}
"""Routes about the whole process; every other one is there for each stream."""
OIP_ROUTES = {
    "GET /v2",
    "GET /v2/health/live",
    "GET /v2/health/ready",
    "GET /v2/models/{stream}",
    "GET /v2/models/{stream}/ready",
    "GET /v2/models/{stream}/versions/{version}",
    "GET /v2/models/{stream}/versions/{version}/ready",
    "POST /v2/models/{stream}/infer",
    "POST /v2/models/{stream}/observe",
    "POST /v2/models/{stream}/versions/{version}/infer",
}
"""Those of the Open Inference Protocol and our extension of it."""
CODES = {
    "backlog_full",
    "bad_batch_id",
    "bad_body",
    "bad_dtype",
    "bad_http",
    "bad_idempotency_key",
    "bad_image",
    "bad_inference",
    "bad_json",
    "bad_label",
    "bad_parameter",
    "bad_safetensors",
    "bad_sample_id",
    "bad_shape",
    "bad_stream",
    "bad_value",
    "batch_too_large",
    "body_too_large",
    "command_refused",
    "conflict",
    "digest_mismatch",
    "disk_full",
    "empty_batch",
    "foreign_origin",
    "foreign_scope",
    "foreign_stream",
    "idempotency_key_required",
    "idempotency_key_reused",
    "incomplete_body",
    "internal",
    "keys_unreadable",
    "label_count",
    "label_kind_mismatch",
    "line_too_large",
    "method_not_allowed",
    "missing_field",
    "mixed_labels",
    "not_finite",
    "not_learned_yet",
    "not_found",
    "not_quarantined",
    "not_ready",
    "out_of_range",
    "nothing_to_label",
    "overloaded",
    "prediction_failed",
    "rate_limited",
    "redis_unavailable",
    "schema_mismatch",
    "stopping",
    "stream_exists",
    "too_many_classes",
    "too_many_connections",
    "too_many_pixels",
    "too_many_in_flight",
    "too_many_listeners",
    "too_slow",
    "too_many_streams",
    "unauthorized",
    "unknown_batch",
    "unknown_checkpoint",
    "unknown_expert",
    "unknown_field",
    "unknown_host",
    "unknown_label",
    "unknown_stream",
    "unknown_version",
    "unsupported_encoding",
    "unsupported_type",
    "worker_silent",
}
SETTINGS = {
    "allow_weaker_durability",
    "allowed_hosts",
    "api_threads",
    "budget",
    "capacity",
    "checkpoint_interval_s",
    "checkpoints_kept",
    "connections",
    "connections_per_address",
    "data",
    "device",
    "disk_floor_bytes",
    "expert",
    "false_expansion_horizon",
    "false_expansion_probability",
    "fusion",
    "head_timeout_s",
    "host",
    "input",
    "insecure",
    "key_replay_share",
    "label_window",
    "label_window_bytes",
    "labels",
    "learning_rate",
    "log_archive",
    "log_archive_bytes",
    "max_backlog",
    "max_batch",
    "max_body_bytes",
    "max_classes",
    "max_experts",
    "max_json_bytes",
    "max_pixels",
    "max_streams",
    "metrics_max_classes",
    "patch",
    "port",
    "predict_max_batch",
    "predict_queue",
    "preset",
    "probe_host",
    "probe_port",
    "published_on_loopback",
    "receive_timeout_s",
    "redis_maxmemory_bytes",
    "redis_password_file",
    "redis_url",
    "replay_bytes",
    "replay_per_batch",
    "require_idempotency_key",
    "seed",
    "snapshot_interval_s",
    "state_dir",
    "state_hmac_key_file",
    "statistics_bytes",
    "stream",
    "stream_timeout_s",
    "threshold",
    "top_k",
    "worker_metrics_host",
    "worker_metrics_port",
    "worker_threads",
}
METRICS = {
    "levit_build_info",
    "levit_checkpoint_age_seconds",
    "levit_checkpoint_bytes",
    "levit_checkpoint_duration_seconds",
    "levit_checkpoint_failures_total",
    "levit_class_prequential_accuracy_ratio",
    "levit_decisions_total",
    "levit_disk_free_bytes",
    "levit_disk_needed_bytes",
    "levit_entries_learned_total",
    "levit_entries_quarantined_total",
    "levit_expansions_refused_total",
    "levit_expansions_total",
    "levit_experts",
    "levit_experts_limit",
    "levit_forward_duration_seconds",
    "levit_held_out_samples",
    "levit_label_requests_total",
    "levit_labels_total",
    "levit_loss_nats",
    "levit_novelty",
    "levit_novelty_threshold",
    "levit_observations_total",
    "levit_observe_duration_seconds",
    "levit_overruled",
    "levit_parameters",
    "levit_part_accuracy_ratio",
    "levit_part_weight",
    "levit_predict_batch_size",
    "levit_predict_duration_seconds",
    "levit_predictions_total",
    "levit_prequential_accuracy_ratio",
    "levit_redis_memory_bytes",
    "levit_redis_memory_limit_bytes",
    "levit_redis_ready",
    "levit_requests_refused_total",
    "levit_replay_capacity_samples",
    "levit_replay_samples",
    "levit_replay_unlabelled_samples",
    "levit_sample_gradients_total",
    "levit_samples_labelled_total",
    "levit_samples_learned_total",
    "levit_samples_observed_total",
    "levit_samples_unlabelled_total",
    "levit_samples_waiting",
    "levit_snapshot_age_seconds",
    "levit_snapshot_duration_seconds",
    "levit_snapshot_version",
    "levit_staleness_seconds",
    "levit_state_bytes",
    "levit_step_duration_seconds",
    "levit_stream_backlog",
    "levit_stream_backlog_limit",
    "levit_stream_gap_entries",
    "levit_worker_stopped",
}
FRONT_DOOR = [
    "PARTS",
    "AdaptiveConfig",
    "AdaptiveExpert",
    "AdaptiveLEViT",
    "AdaptiveMixture",
    "ConfigError",
    "Expansion",
    "Explanation",
    "Heat",
    "LEViT",
    "LearnerConfig",
    "LearnerError",
    "LearnerState",
    "Life",
    "Mixture",
    "NonFiniteError",
    "ObserveReport",
    "Prediction",
    "Purged",
    "ShapeError",
    "StateError",
    "Stored",
    "drawn",
    "dump",
    "explain",
    "features",
    "paper",
    "purge",
    "restore",
    "restore_for_prediction",
    "unit",
]


def rows(section: str) -> list[list[str]]:
    """Return the cells of the first table under a heading of README, header left out."""
    body = README.split(f"\n## {section}\n", 1)[1]
    table = re.findall(r"^\|(.+)\|$", body[body.index("\n|") :].split("\n\n")[0], re.MULTILINE)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)] for row in table[2:]]


def codes_in(path: Path) -> set[str]:
    """Return the error codes that a source file gives to a `ServiceError`, or answers itself."""
    text = path.read_text(encoding="utf-8")
    refusals = (
        r"(?:BadRequest|Unauthorized|Forbidden|Misdirected|NotFound|Conflict|TooLarge|TooSlow|UnsupportedMedia"
        r"|Unprocessable|TooMany|Unavailable)"
        r'\(\s*"(\w+)",|\b\d{3}: \("(\w+)",|code, detail = "(\w+)",'
    )
    return {code for match in re.findall(refusals, text) for code in match if code}


def shown(default: object) -> str:
    """Return a default as README spells it."""
    if default is None:
        return "unset"
    return str(default).lower() if isinstance(default, bool) else str(default)


def test_routes() -> None:
    app = create_app(Settings(insecure=True), lambda: cast(Engines, None))
    paths = app.openapi()["paths"]

    found = {f"{verb.upper()} {path}" for path in paths for verb in paths[path]}
    prefix = "/streams/{stream}"

    assert {route for route in found if prefix not in route} == ROUTES | OIP_ROUTES
    assert {route.replace(prefix, "") for route in found if prefix in route} == ROUTES - PROCESS
    assert {row[0].strip("`") for row in rows("API")} == ROUTES
    assert {row[0].strip("`") for row in rows("Open Inference Protocol")} == OIP_ROUTES


def test_error_codes() -> None:
    used = set().union(*map(codes_in, SOURCES))
    told = README.split("| Status | Codes |", 1)[1].split("\n\n", 1)[0]

    assert used == CODES
    assert set(re.findall(r"`(\w+)`", told)) == CODES


def test_settings() -> None:
    assert set(Settings.model_fields) == SETTINGS
    assert rows("Settings") == [
        [
            f"`{PREFIX}{name.upper()}`",
            f"`{shown(field.default)}`",
            " ".join((field.description or "").split()),
        ]
        for name, field in Settings.model_fields.items()
    ]


def test_metrics() -> None:
    found = families()

    assert set(found) == METRICS
    assert rows("Metrics") == [
        [
            f"`{name}`",
            metric.type,
            ", ".join(
                sorted({f"`{label}`" for s in metric.samples for label in s.labels} - {"`le`"})
            ),
            metric.documentation,
        ]
        for name, metric in found.items()
    ]


def test_front_door_of_the_learner() -> None:
    assert learner.__all__ == FRONT_DOOR


def test_the_files_that_readme_names_exist() -> None:
    named = re.findall(r"\]\(([\w/.]+)\)", README)

    assert len(named) > 6
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_short_or_says_why_not(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())

    assert lines <= MOST_LINES or str(path.relative_to(ROOT)) in LONG_MODULES


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def learner_classes() -> dict[str, str]:
    """Return the name of each public class of the learner, with what is said of its source."""
    found = {}
    for path in sorted(set(ROOT.glob("learner/*.py")) - {ROOT / "learner/errors.py"}):
        module = ast.parse(path.read_text(encoding="utf-8"))
        for node in module.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name] = f"{ast.get_docstring(module)} {ast.get_docstring(node)}"
    return found


@pytest.mark.parametrize("name", learner_classes())
def test_a_class_of_the_learner_names_its_source(name: str) -> None:
    said = learner_classes()[name]

    assert re.search(
        r"\b(?:ours|paper|LEViT|Ye & Bors|et al\.|(?:19|20)\d\d)\b", said, re.IGNORECASE
    )
