"""The file of keys: what is kept, who counts, what damage does, several writers at once."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.errors import CorruptState, Misused
from service.store import keys as store
from service.store.keys import FILE, Key, Ring, create_key, read_keys, revoke_key


def made(state_dir: Path, **chosen: object) -> tuple[Key, str]:
    asked: dict[str, Any] = {"name": "me", "scopes": ["observe"]} | chosen
    return create_key(state_dir, **asked)


def ring(state_dir: Path) -> Ring:
    return Ring(read_keys(state_dir) or [])


def test_a_key_is_found_by_its_token_and_by_no_other(state_dir: Path) -> None:
    key, token = made(state_dir)
    _, other = made(state_dir)

    assert ring(state_dir).find(token) == key
    for wrong in ("", token[:-1], token + "x", token.upper(), other[:18] + token[18:], f" {token}"):
        assert ring(state_dir).find(wrong) is None


def test_the_token_is_256_random_bits_and_on_disk_nowhere(state_dir: Path) -> None:
    key, token = made(state_dir)
    secret = token.removeprefix(f"levit_{key.id}_")

    assert len(secret) == 43  # 256 bits in base64
    for path in state_dir.rglob("*"):
        assert secret.encode() not in path.read_bytes()
    assert secret not in repr(key)
    assert key.sha256 not in repr(key)


def test_the_file_is_for_its_owner_only(state_dir: Path) -> None:
    made(state_dir)

    assert (state_dir / FILE).stat().st_mode & 0o777 == 0o600


def test_a_first_key_is_made_before_there_is_a_state_directory(tmp_path: Path) -> None:
    key, _ = made(tmp_path / "not" / "yet")

    assert read_keys(tmp_path / "not" / "yet") == [key]


def test_no_key_was_ever_made(state_dir: Path) -> None:
    assert read_keys(state_dir) is None


def test_a_revoked_key_counts_no_more_and_is_still_listed(state_dir: Path) -> None:
    key, token = made(state_dir)

    revoke_key(state_dir, key.id)

    assert ring(state_dir).find(token) is None
    assert key.id not in ring(state_dir)
    assert [(one.id, one.state, one.sha256) for one in read_keys(state_dir) or []] == [
        (key.id, "revoked", "")
    ]


def test_an_expired_key_counts_no_more(state_dir: Path) -> None:
    _, token = made(state_dir, lifetime_s=-1)

    assert ring(state_dir).find(token) is None
    assert [key.state for key in read_keys(state_dir) or []] == ["expired"]


def test_a_key_that_will_expire_counts(state_dir: Path) -> None:
    key, token = made(state_dir, lifetime_s=60)

    assert ring(state_dir).find(token) == key


@pytest.mark.parametrize("wrong", ["absent", "../../etc", "\r\n"])
def test_a_key_that_is_not_there_cannot_be_revoked(state_dir: Path, wrong: str) -> None:
    made(state_dir)

    with pytest.raises(Misused, match="there is no key"):
        revoke_key(state_dir, wrong)


def test_a_key_is_revoked_once(state_dir: Path) -> None:
    key, _ = made(state_dir)
    revoke_key(state_dir, key.id)

    with pytest.raises(Misused, match="revoked before"):
        revoke_key(state_dir, key.id)


def test_revoking_makes_no_state_directory(tmp_path: Path) -> None:
    with pytest.raises(Misused):
        revoke_key(tmp_path / "absent", "0" * 12)

    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        ({"name": ""}, "name: "),
        ({"name": "a\r\nb"}, "name: "),
        ({"scopes": ["everything"]}, "scopes: "),
        ({"scopes": []}, "scopes: "),
        ({"streams": ["../x"]}, "streams: "),
        ({"rate": 0}, "rate: "),
        ({"rate": float("nan")}, "rate: "),
        ({"burst": 0}, "burst: "),
        ({"in_flight": 0}, "in_flight: "),
    ],
)
def test_what_no_key_can_be_is_refused_and_nothing_is_written(
    state_dir: Path, chosen: dict[str, Any], named: str
) -> None:
    with pytest.raises(Misused, match=named):
        made(state_dir, **chosen)

    assert read_keys(state_dir) is None


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "no JSON": lambda _: b"\x00\xff",
    "another document": lambda _: b"[]",
    "a wider scope": lambda content: content.replace(b'"observe"', b'"admin"'),
    "no end": lambda content: content.replace(b'"expires": 1', b'"expires": 9'),
    "no hash": lambda content: json.dumps({"keys": json.loads(content)["keys"]}).encode(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_file_is_noticed_and_never_written_over(
    state_dir: Path, damage: Callable[[bytes], bytes]
) -> None:
    made(state_dir, lifetime_s=60)
    path = state_dir / FILE
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)

    for act in (read_keys, made, lambda where: revoke_key(where, "0" * 12)):
        with pytest.raises(CorruptState, match=FILE):
            act(state_dir)
    assert path.read_bytes() == damaged


def test_without_its_hash_a_flipped_scope_would_not_be_noticed(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_seal", lambda _: "unsealed")
    made(state_dir)
    path = state_dir / FILE
    path.write_bytes(path.read_bytes().replace(b'"observe"', b'"admin"'))

    assert [key.scopes for key in read_keys(state_dir) or []] == [{"admin"}]


def test_a_file_that_cannot_be_read_is_no_absent_one(state_dir: Path) -> None:
    (state_dir / FILE).mkdir()

    with pytest.raises(CorruptState, match="cannot be read"):
        read_keys(state_dir)


MAKE_FIVE = (
    "import sys; from pathlib import Path; from service.store.keys import create_key\n"
    "for _ in range(5): create_key(Path(sys.argv[1]), name='me', scopes=['read'])"
)


def at_once(program: str, state_dir: Path) -> int:
    """Run a program four times at the same time; return how many keys there are then."""
    running = [subprocess.Popen([sys.executable, "-c", program, state_dir]) for _ in range(4)]
    assert [one.wait() for one in running] == [0] * 4
    return len(read_keys(state_dir) or [])


def test_commands_at_the_same_time_lose_no_key(state_dir: Path) -> None:
    assert at_once(MAKE_FIVE, state_dir) == 20


def test_without_the_lock_keys_are_lost(state_dir: Path) -> None:
    slowly = (
        "import fcntl, time; fcntl.flock = lambda *_: None; import service.store.keys as k\n"
        "read = k.read_keys\n"
        "def slow(where): found = read(where); time.sleep(0.05); return found\n"
        "k.read_keys = slow\n"
    )

    assert at_once(slowly + MAKE_FIVE, state_dir) < 20
