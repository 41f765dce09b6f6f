"""`levit keys` as an operator meets it, and the start of a service with and without keys."""

import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.api.keyring import Keyring
from service.store.keys import FILE, create_key, read_keys
from tests.test_cli import levit

ALL = ("--scope", "observe", "--scope", "predict")


def test_a_key_is_made_used_listed_and_revoked(tmp_path: Path) -> None:
    where = {"LEVIT_STATE_DIR": str(tmp_path / "state")}

    made = levit("keys", "create", "--name", "me", *ALL, "--expires", "30d", "--rate", "9", **where)
    token = made.stdout.strip()
    found = Keyring(tmp_path / "state", insecure=False).find(token)
    assert found is not None
    listed = levit("keys", "list", **where)
    revoked = levit("keys", "revoke", found.id, **where)

    assert (found.name, sorted(found.scopes), found.rate) == ("me", ["observe", "predict"], 9)
    assert found.expires == pytest.approx(time.time() + 30 * 86_400, abs=60)
    assert token not in made.stderr + listed.stdout + revoked.stdout
    assert found.sha256 not in listed.stdout
    assert re.search(rf"{found.id}.* me .* active .* observe predict .* all ", listed.stdout)
    assert revoked.stdout == f"key {found.id} (me) revoked\n"
    assert Keyring(tmp_path / "state", insecure=False).find(token) is None


def test_there_are_no_keys_to_list(tmp_path: Path) -> None:
    done = levit("keys", "list", LEVIT_STATE_DIR=str(tmp_path))

    assert done.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["create", "--name", "a/b", *ALL], "name: "),
        (["create", "--name", "me", "--scope", "all"], "scopes: "),
        (["create", "--name", "me", *ALL, "--stream", "../x"], "streams: "),
        (["create", "--name", "me", *ALL, "--expires", "soon"], "--expires: expected a number"),
        (["create", "--name", "me", *ALL, "--rate", "0"], "rate: "),
        (["revoke", "0" * 12], "there is no key"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_makes_no_key(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = levit("keys", *arguments, LEVIT_STATE_DIR=str(tmp_path))

    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert read_keys(tmp_path) is None


def test_a_damaged_file_is_one_line_and_is_not_mended(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("?")

    done = levit("keys", "create", "--name", "me", *ALL, LEVIT_STATE_DIR=str(tmp_path))

    assert done.returncode == 65
    assert FILE in done.stderr
    assert (tmp_path / FILE).read_text() == "?"


def children_s() -> float:
    """Return the seconds of a processor that finished children have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("command", ["serve", "api"])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104
def test_without_keys_nothing_starts(tmp_path: Path, command: str, host: str) -> None:
    used = children_s()
    done = levit(command, "--host", host, LEVIT_STATE_DIR=str(tmp_path / "state"))

    assert children_s() - used < 3
    assert (done.returncode, done.stdout) == (2, "")
    assert "levit keys create" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "state").exists()


CHECK = (
    "from service.exposure import check_exposure; from service.settings import Settings\n"
    "check_exposure(Settings.read())"
)


def test_with_a_key_it_may_be_on_all_addresses(tmp_path: Path) -> None:
    create_key(tmp_path, name="me", scopes=["read"])

    subprocess.run(
        [sys.executable, "-c", CHECK],
        env=os.environ | {"LEVIT_HOST": "0.0.0.0", "LEVIT_STATE_DIR": str(tmp_path)},  # noqa: S104
        check=True,
        timeout=30,
    )


def test_the_file_names_no_token(tmp_path: Path) -> None:
    token = levit("keys", "create", "--name", "me", *ALL, LEVIT_STATE_DIR=str(tmp_path)).stdout

    document = json.loads((tmp_path / FILE).read_text())

    assert token.strip()[-43:] not in json.dumps(document)
