"""The command line as a stranger meets it: its own process, its output, its exit code."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.client import Client
from service.demo.data import load_data
from service.demo.process import running_service
from service.settings import Settings

COMMANDS = (
    *("serve", "api", "worker", "demo", "observe", "predict", "experts", "bench", "config"),
    *(
        "quarantine",
        "checkpoints",
        "snapshots",
        "resync",
        "log",
        "replay",
        "watch",
        "report",
        "streams",
        "keys",
    ),
)
NOWHERE = "http://127.0.0.1:9"


def levit(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `levit` with these arguments and, beside the test's environment, these settings."""
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        env=os.environ | {"COLUMNS": "100"} | environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_help_names_every_command() -> None:
    done = levit("--help")

    assert done.returncode == 0
    assert [command for command in COMMANDS if f" {command} " not in done.stdout] == []


def test_importing_the_command_line_imports_nothing_slow() -> None:
    slow = {"torch", "learner", "fastapi", "uvicorn", "redis", "matplotlib", "sklearn"}
    code = f"import sys, service.cli; print(sorted({slow} & set(sys.modules)))"

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )

    assert done.stdout.strip() == "[]"


def test_config_prints_every_setting_with_its_meaning() -> None:
    done = levit("config", LEVIT_PORT="9000")

    assert "LEVIT_PORT = 9000   (default: 8000)\n    Port of the API." in done.stdout
    assert done.stdout.count("(default: ") == len(Settings.model_fields)


def test_config_hides_the_password_of_an_address() -> None:
    done = levit("config", LEVIT_REDIS_URL="redis://me:secret@example.org:6379/0")

    assert "redis://me:***@example.org:6379/0" in done.stdout
    assert "secret" not in done.stdout


@pytest.fixture
def vectors(tmp_path: Path) -> str:
    """A file of two vectors with labels."""
    path = tmp_path / "vectors.npz"
    np.savez(path, x=np.zeros((2, 3), np.float32), y=np.array([0, 1]))
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["config"], {"LEVIT_PROT": "1"}, "unknown setting LEVIT_PROT"),
        (["config"], {"LEVIT_PORT": "many"}, "LEVIT_PORT: "),
        (["api"], {}, "--insecure"),
        (["api", "--insecure", "--host", "192.0.2.1"], {}, "LEVIT_HOST: "),
        (["observe", "absent.npz"], {}, "absent.npz"),
        (["quarantine", "drop"], {}, "expected batch ids or --all, got neither"),
        (["predict", "README.md"], {}, "README.md"),
        (["demo", "--data", "mnist"], {}, "LEVIT_DATA"),
        (["demo", "--data", "absent.npz"], {}, "absent.npz"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], environment: dict[str, str], said: str
) -> None:
    done = levit(*arguments, **environment)

    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": np.zeros((2, 8, 8), np.uint8)}, "expected an array x or x_train"),
        ({"x": np.zeros((2, 3), np.int64)}, "expected samples of uint8 or floats"),
        ({"x": np.zeros((0, 3), np.float32)}, "expected samples of uint8 or floats"),
        ({"x": np.zeros((2, 3), np.float32), "y": np.zeros(3, np.int64)}, "expected 2 integers"),
    ],
    ids=["no samples", "integers", "empty", "too many labels"],
)
def test_a_file_that_cannot_be_sent_says_why(
    tmp_path: Path, arrays: dict[str, Any], said: str
) -> None:
    np.savez(tmp_path / "data.npz", **arrays)

    done = levit("observe", str(tmp_path / "data.npz"), "--url", NOWHERE)

    assert done.returncode == 2
    assert said in done.stderr


def test_a_service_that_is_away_is_exit_code_1(vectors: str) -> None:
    done = levit("predict", vectors, "--url", NOWHERE)

    assert done.returncode == 1
    assert done.stderr.startswith(f"levit: no answer from {NOWHERE}")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_file_is_observed_predicted_and_streamed_into_a_running_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = load_data("digits", None, limit=50)
    samples = {"x_train": data.x_train, "y_train": data.y_train, "x_test": data.x_test[:5]}
    np.savez("digits.npz", allow_pickle=False, **samples)

    with running_service({"statistics_bytes": 2**20, "budget": 5}) as url:
        observed = levit("observe", "digits.npz", "--url", url)
        with Client(url) as client:
            client.predict(data.x_test[:1])  # waits until the model is served
        predicted = levit("predict", "digits.npz", "--url", url)
        shown = levit("experts", "--url", url)
        streamed = levit("demo", "--url", url, "--limit", "30")

    assert observed.stdout == "50 samples accepted; the last batch is learned (step 1)\n"
    assert len(predicted.stdout.splitlines()) == 1 + 5
    assert "50 samples learned" in shown.stdout
    assert "30 in batches of 10" in streamed.stdout
    assert "as that service is set" in streamed.stdout
    assert "levit serve" not in streamed.stdout
