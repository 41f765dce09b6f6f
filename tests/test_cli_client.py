"""The users' commands against a service on a port: what is sent, printed and gone on with."""

import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from service import cli, cli_options
from service.cli_client import _print_why
from service.client import ApiError, Client
from service.datafile import BadDataFile, read_arrays
from service.engine.protocol import Array
from service.settings import Settings
from service.store.keys import create_key
from tests.images import as_file
from tests.patience import BUSY
from tests.scripted import Script, refused

DARK, LIGHT = np.zeros((8, 8), np.uint8), np.full((8, 8), 200, np.uint8)
X = np.stack([DARK, LIGHT] * 10)
NAMES = np.array(["dark", "light"] * 10)
HEAD = "sample\tlabel\tprobability\texpert\tnovelty"


def levit(*arguments: str) -> Result:
    """Run `levit` in this process."""
    return CliRunner().invoke(cli.app, arguments)


@pytest.fixture
def url(live: Settings) -> str:
    return f"http://127.0.0.1:{live.port}"


@pytest.fixture
def data(tmp_path: Path) -> str:
    np.savez(tmp_path / "data.npz", x=X, y=NAMES)
    return str(tmp_path / "data.npz")


@pytest.mark.usefixtures("learning")
def test_a_file_is_observed_once_however_often_it_is_sent(url: str, data: str) -> None:
    first = levit("observe", data, "--batch-size", "8", "--url", url)
    again = levit("observe", data, "--batch-size", "8", "--url", url)
    other = levit("observe", data, "--batch-size", "8", "--run", "again", "--url", url)

    assert first.stdout == "20 samples accepted; the last batch is learned (step 3)\n"
    assert again.stdout == (
        "20 samples accepted, 20 of them before; the last batch is learned (step 3)\n"
    )
    assert other.stdout == "20 samples accepted; the last batch is learned (step 6)\n"


@pytest.mark.usefixtures("learning")
def test_labels_may_lie_in_a_file_of_their_own(url: str, data: str, tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.arange(20))

    levit("observe", data, "--labels", str(tmp_path / "labels.npy"), "--url", url)

    with Client(url) as client:
        assert client.experts()["classes"] == list(range(20))


@pytest.mark.usefixtures("learning")
def test_arrays_and_images_are_predicted_alike(url: str, data: str, tmp_path: Path) -> None:
    levit("observe", data, "--url", url)
    np.save(tmp_path / "two.npy", X[:2])
    (tmp_path / "light.png").write_bytes(as_file(LIGHT))

    both = levit("predict", str(tmp_path / "two.npy"), "--url", url).stdout.splitlines()
    image = levit("predict", str(tmp_path / "light.png"), "--url", url).stdout.splitlines()

    assert [row.split("\t")[:2] for row in both] == [
        ["sample", "label"],
        *[["0", "dark"], ["1", "light"]],
    ]
    assert image[0] == HEAD
    assert image[1].split("\t")[1:] == both[2].split("\t")[1:]


@pytest.mark.usefixtures("learning")
def test_a_prediction_is_explained_below_its_line(url: str, data: str, tmp_path: Path) -> None:
    levit("observe", data, "--url", url)
    (tmp_path / "light.png").write_bytes(as_file(LIGHT))
    np.save(tmp_path / "many.npy", X[np.arange(17) % 2])

    why = levit("predict", str(tmp_path / "light.png"), "--explain", "--url", url)
    many = levit("predict", str(tmp_path / "many.npy"), "--explain", "--url", url)

    _, row, shares, nearest = why.stdout.splitlines()
    assert shares == f"  shares: expert {row.split(chr(9))[3]} 1.00, means 1.00"
    assert nearest == "  nearest: none, the replay memory is empty"  # an expansion cleared it
    assert many.stdout.count("  shares: ") == 17


def test_heat_is_drawn_darkest_where_most_of_the_answer_comes_from(
    capsys: pytest.CaptureFixture[str],
) -> None:
    heat = {"kind": "attention", "rows": [[0, 1], [0.5, 0.1]]}
    facts = {"weights": {"0": 0.0}, "parts": {"memory": 1.0}, "heat": heat}

    near = [
        {"sample_id": f"7:{i}", "distance": 0.5, "label": label} for i, label in enumerate("ab")
    ]

    _print_why({**facts, "nearest": near})

    assert capsys.readouterr().out.splitlines() == [
        "  shares: memory 1.00",
        "  nearest: 7:0 (a), 7:1 (b)",
        "  |  @@|",
        "  |==..|",
    ]


@pytest.mark.usefixtures("learning")
def test_rows_of_a_csv_are_vectors(url: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.eye(3, dtype=np.float32) * 0.9)
    np.save(tmp_path / "y.npy", np.arange(3))
    (tmp_path / "vector.csv").write_text("0, 0.9, 0.1\n\n0.8,0,0\n")
    levit("observe", str(tmp_path / "x.npy"), "--labels", str(tmp_path / "y.npy"), "--url", url)

    rows = levit("predict", str(tmp_path / "vector.csv"), "--url", url).stdout.splitlines()

    assert [row.split("\t")[1] for row in rows] == ["label", "1", "0"]


@pytest.mark.usefixtures("learning")
def test_a_label_cannot_write_on_the_terminal(url: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X[:2], y=np.array(["\x1b[31m\t[/]", "\x1b[31m\t[/]"]))
    levit("observe", str(tmp_path / "data.npz"), "--url", url)

    predicted = levit("predict", str(tmp_path / "data.npz"), "--url", url)
    shown = [levit("experts", "--url", url), levit("watch", "--once", "--url", url)]

    assert predicted.stdout.splitlines()[1].split("\t")[1] == r"\x1b[31m\t[/]"
    assert [one.exit_code for one in shown] == [0, 0]
    assert not any("\x1b" in one.stdout for one in shown)


def test_a_key_and_a_stream_go_along(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(refused(401))
    monkeypatch.setenv("LEVIT_KEY", "levit_secret")
    monkeypatch.setattr(
        cli_options, "Client", partial(Client, transport=httpx.MockTransport(script))
    )

    levit("predict", data, "--stream", "cams")

    assert script.requests[0].url.path == "/streams/cams/predict"
    assert script.requests[0].headers["Authorization"] == "Bearer levit_secret"


@pytest.mark.usefixtures("learning")
def test_a_stream_is_declared_and_learns(url: str, data: str) -> None:
    options = ["--input", "image:8x8x1", "--labels", "dark,light", "--set", "max_experts=4"]

    created = levit("streams", "create", "cams", *options, "--url", url)
    observed = levit("observe", data, "--stream", "cams", "--url", url)
    predicted = levit("predict", data, "--stream", "cams", "--url", url)
    listed = levit("streams", "list", "--url", url)

    assert created.stdout.endswith("stream cams is there: levit observe FILE --stream cams\n")
    assert observed.stdout == "20 samples accepted; the last batch is learned (step 1)\n"
    assert [row.split("\t")[1] for row in predicted.stdout.splitlines()[1:3]] == ["dark", "light"]
    [row] = [line for line in listed.stdout.splitlines() if "cams" in line]
    assert [cell.strip() for cell in row.split("│")[1:-1]][:2] == ["cams", "image:8x8x1"]


def test_a_stream_declared_otherwise_is_refused(url: str) -> None:
    levit("streams", "create", "cams", "--input", "vector:3", "--url", url)

    refused = levit("streams", "create", "cams", "--input", "vector:4", "--url", url).exception

    assert isinstance(refused, ApiError)
    assert refused.code == "stream_exists"


@pytest.mark.usefixtures("learning")
def test_a_key_opens_what_it_reaches(
    live: Settings, url: str, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, writes = create_key(live.state_dir, name="writer", scopes=["observe"])
    _, reads = create_key(live.state_dir, name="reader", scopes=["predict", "read"])
    wait_until_closed(url)

    without = levit("observe", data, "--url", url).exception
    monkeypatch.setenv("LEVIT_KEY", writes)
    observed = levit("observe", data, "--url", url)
    foreign = levit("watch", "--once", "--url", url).exception
    monkeypatch.setenv("LEVIT_KEY", reads)
    predicted = levit("predict", data, "--url", url)
    watched = levit("watch", "--once", "--url", url)

    assert isinstance(without, ApiError)
    assert isinstance(foreign, ApiError)
    assert (without.status, foreign.status) == (401, 403)
    assert "20 samples accepted; the last batch is learned" in observed.stdout
    assert re.search(r"^0\tdark\t", predicted.stdout, re.MULTILINE)
    assert re.search(r"backlog -\s", watched.stdout)


def wait_until_closed(url: str) -> None:
    """Wait until the service has seen that there are keys."""
    with Client(url) as client:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                client.experts()
            except ApiError:
                return
            time.sleep(0.05)
    raise TimeoutError("still open")


def test_a_service_that_is_away_is_said_at_once(data: str) -> None:
    started = time.monotonic()

    refused = levit("observe", data, "--url", "http://127.0.0.1:9").exception

    assert isinstance(refused, ApiError)
    assert refused.code == "unreachable"
    assert time.monotonic() - started < BUSY * 3


def test_labels_of_another_number_are_refused(data: str, tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.arange(19))

    refused = levit("observe", data, "--labels", str(tmp_path / "labels.npy")).exception

    assert isinstance(refused, BadDataFile)
    assert "expected 20 integers or strings as labels" in str(refused)


@pytest.mark.crash
@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_observe_that_is_stopped_goes_on_by_the_same_command(
    learning: Settings, tmp_path: Path, how: signal.Signals
) -> None:
    x = np.arange(4_000 * 3, dtype=np.float32).reshape(-1, 3)
    np.save(tmp_path / "x.npy", x)
    url = f"http://127.0.0.1:{learning.port}"
    command = [sys.executable, "-m", "service", "observe", str(tmp_path / "x.npy")]
    command += ["--batch-size", "5", "--url", url]

    with (
        Client(url) as client,
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as stopped,
    ):
        while client.experts()["samples_learned"] < 500:
            time.sleep(0.02)
        stopped.send_signal(how)
        said = stopped.communicate()[1]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert stopped.returncode == (-9 if how is signal.SIGKILL else 130)
    assert how is signal.SIGKILL or "levit: stopped; the same command goes on" in said
    found = re.match(r"4000 samples accepted, (\d+) of them before; .*learned", done.stdout)
    assert found is not None
    assert 500 <= int(found[1]) < 4_000
    np.testing.assert_array_equal(all_that_was_accepted(learning, tmp_path), x)


def all_that_was_accepted(settings: Settings, folder: Path) -> Array:
    """Return every sample of log and archive, in order."""
    export = folder / "everything.npz"
    named = ("--state-dir", str(settings.state_dir))
    environment = {"LEVIT_REDIS_URL": str(settings.redis_url)}
    done = CliRunner().invoke(cli.app, ["log", "export", str(export), *named], env=environment)
    assert done.exit_code == 0, done.output
    return read_arrays(export)["x"]
