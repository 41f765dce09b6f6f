"""With a key, what was changed in a state directory is refused even where every hash fits."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.errors import CorruptState, SettingsError
from service.settings import Settings
from service.store import directory
from service.store.directory import MANIFEST, FileFacts
from service.store.pins import open_pin, pin
from service.store.snapshots import SnapshotReader
from service.worker import loop
from service.worker.checkpoints import Checkpoints, read_checkpoint
from tests.conftest import MakeSettings
from tests.log_entries import append_all, batches, claimed
from tests.toy_learning import learn_all

ROOT = Path(__file__).parent.parent
UNSIGNED = "is not signed with LEVIT_STATE_HMAC_KEY_FILE"


def read_snapshot(path: Path) -> object:
    return SnapshotReader(path.parent.parent).load(int(path.name.removeprefix("snap-")))


def read_pin(path: Path) -> object:
    pinned = open_pin(path)
    return [pinned.read(name) for name in pinned.files]


READ: dict[str, Callable[[Path], object]] = {
    "checkpoint": read_checkpoint,
    "snapshot": read_snapshot,
    "pin": read_pin,
}
each_kind = pytest.mark.parametrize("kind", READ)


@pytest.fixture(autouse=True)
def _afterwards_without(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(loop, "BLOCK_MS", 1)
    yield
    directory.sign_with(None)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return key_file(tmp_path / "key", "a" * 64)


def key_file(path: Path, text: str) -> Path:
    path.write_text(text + "\n")
    return path


@pytest.fixture
def made(settings: MakeSettings) -> Settings:
    return settings()


async def written(made: Settings) -> dict[str, Path]:
    """Learn a little; return a directory of each kind that then lies in the state directory."""
    await append_all(made, batches(8))
    learn_all(made)
    newest = next(Checkpoints(made).newest_first())
    fence = claimed(str(made.redis_url))
    pin(made.state_dir, Checkpoints(made).newest_seq, "good", fence)
    fence.close()
    snapshot = max((made.state_dir / "snapshots").glob("snap-*"))
    return {"checkpoint": newest, "snapshot": snapshot, "pin": made.state_dir / "pins" / "good"}


def forge(path: Path) -> None:
    """Change a byte of a file, and give the manifest the hashes that then fit."""
    manifest = json.loads((path / MANIFEST).read_bytes())
    content = bytearray((path / "served.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "served.safetensors").unlink()  # another directory may link to it
    (path / "served.safetensors").write_bytes(content)
    manifest["files"]["served.safetensors"] = asdict(FileFacts.of(bytes(content)))
    seals = {name: manifest.pop(name, None) for name in ("sha256", "hmac")}
    seals["sha256"] = hashlib.sha256(directory._canonical(manifest)).hexdigest()
    (path / MANIFEST).write_bytes(json.dumps(manifest | seals).encode())


@each_kind
async def test_what_was_signed_is_read(made: Settings, key: Path, kind: str) -> None:
    directory.sign_with(key)
    path = (await written(made))[kind]

    assert READ[kind](path)


@each_kind
async def test_what_was_changed_is_refused_although_its_hashes_fit(
    made: Settings, key: Path, kind: str
) -> None:
    directory.sign_with(key)
    path = (await written(made))[kind]

    forge(path)

    with pytest.raises(CorruptState, match=UNSIGNED):
        READ[kind](path)


@each_kind
async def test_control_without_a_key_the_same_change_is_not_noticed(
    made: Settings, kind: str
) -> None:
    path = (await written(made))[kind]

    forge(path)

    assert READ[kind](path)


@pytest.mark.parametrize("then", [None, "b" * 64], ids=["none", "another"])
async def test_what_was_written_without_a_key_or_with_another_is_refused(
    made: Settings, key: Path, tmp_path: Path, then: str | None
) -> None:
    directory.sign_with(key_file(tmp_path / "other", then) if then else None)
    paths = await written(made)

    directory.sign_with(key)

    for kind, path in paths.items():
        with pytest.raises(CorruptState, match=UNSIGNED):
            READ[kind](path)


async def test_what_was_signed_can_be_read_without_the_key(made: Settings, key: Path) -> None:
    directory.sign_with(key)
    paths = await written(made)

    directory.sign_with(None)

    assert all(READ[kind](path) for kind, path in paths.items())


async def test_a_worker_with_a_key_never_begins_anew_over_forged_checkpoints(
    made: Settings, key: Path
) -> None:
    directory.sign_with(key)
    await written(made)
    for path in Checkpoints(made).newest_first():
        forge(path)

    with pytest.raises(CorruptState, match="checkpoints can be restored"):
        learn_all(made)


@pytest.mark.parametrize(
    ("text", "problem"), [(None, "No such file"), ("short", "expected at least 32 bytes, got 5")]
)
def test_a_key_that_is_none_is_named(tmp_path: Path, text: str | None, problem: str) -> None:
    file = tmp_path / "key"
    if text is not None:
        key_file(file, text)

    with pytest.raises(SettingsError, match=f"LEVIT_STATE_HMAC_KEY_FILE: .*{problem}"):
        directory.sign_with(file)


@pytest.mark.parametrize(
    "command", [["service", "api", "--insecure"], ["tests.toy_worker", "0"]], ids=["api", "worker"]
)
def test_no_process_starts_without_the_key_that_is_named(
    command: list[str], tmp_path: Path
) -> None:
    environment = {
        "LEVIT_STATE_DIR": str(tmp_path),
        "LEVIT_STATE_HMAC_KEY_FILE": str(tmp_path / "absent"),
        "PATH": os.environ["PATH"],
    }

    ended = subprocess.run(
        [sys.executable, "-m", *command],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 2
    assert "LEVIT_STATE_HMAC_KEY_FILE: " in ended.stderr


@pytest.mark.parametrize(
    "command",
    [
        "checkpoints fork good {}/fork",
        "checkpoints unpin good",
        "snapshots export {}/copy",
        "log export {}/out.npz",
        "replay",
    ],
)
def test_no_command_touches_the_files_without_the_key_that_is_named(
    command: str, tmp_path: Path
) -> None:
    environment = {
        "LEVIT_STATE_DIR": str(tmp_path),
        "LEVIT_STATE_HMAC_KEY_FILE": str(tmp_path / "absent"),
    }

    ended = CliRunner().invoke(app, command.format(tmp_path).split(), env=environment)

    assert isinstance(ended.exception, SettingsError)
