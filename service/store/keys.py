"""The keys of clients: `keys.json` in the state directory, made by `levit keys`, read by the API.

A file rather than Redis: /predict answers while Redis is away, and keys are made before a first
start. A key is 256 random bits and shown once; only its SHA-256 is kept. The file carries a hash
of its own, so that a flipped bit widens no key. Revoked keys stay, without their hash.
"""

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from service.errors import CorruptState, Misused
from service.scopes import Scope
from service.settings import STREAM_NAME
from service.store import directory

FILE: Final = "keys.json"
MODE: Final = 0o600
_TOKEN = re.compile(r"levit_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_NO_HASH: Final = "0" * 64

StreamName = Annotated[str, Field(pattern=STREAM_NAME)]


class Key(BaseModel):
    """What is kept of a key: everything but the key itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    name: str = Field(pattern=r"^[A-Za-z0-9_.@ -]{1,64}$")
    """For people; two keys may share it."""
    sha256: str = Field(pattern=r"^([0-9a-f]{64})?$", repr=False)
    """Of the token, hexadecimal; empty once it is revoked."""
    scopes: frozenset[Scope] = Field(min_length=1)
    streams: frozenset[StreamName] | None
    """Streams it may touch; None: all."""
    created: float
    """Unix seconds, as are the next two."""
    expires: float | None
    revoked: float | None
    rate: float | None = Field(gt=0, le=1e6)
    """Requests a second, in the long run; None: any."""
    burst: int | None = Field(ge=1, le=10**6)
    """Requests at once above the rate; None: those of one second."""
    in_flight: int | None = Field(ge=1, le=10**6)
    """Requests at the same time; None: any."""

    @property
    def state(self) -> str:
        """`active`, `expired` or `revoked`."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= time.time() else "active"


_KEYS = TypeAdapter(list[Key])


def read_keys(state_dir: Path) -> list[Key] | None:
    """Return every key ever made, oldest first; None when none ever was.

    Raises:
        CorruptState: the file cannot be read, or is not what was written.
    """
    path = state_dir / FILE
    try:
        document = json.loads(path.read_bytes())
        keys = document["keys"]
        if document["sha256"] != _seal(keys):
            raise CorruptState(f"{path} is not what was written: sha256 differs")
        return _KEYS.validate_python(keys, strict=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CorruptState(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptState(f"{path} is no file of keys: {type(error).__name__}") from None


def create_key(  # noqa: PLR0913  what is chosen of a key
    state_dir: Path,
    *,
    name: str,
    scopes: Collection[str],
    streams: Collection[str] | None = None,
    lifetime_s: float | None = None,
    rate: float | None = None,
    burst: int | None = None,
    in_flight: int | None = None,
) -> tuple[Key, str]:
    """Return a new key, which is on disk now, and its token, which is nowhere else.

    Raises:
        Misused: a value is out of bounds, naming it.
        CorruptState: the file of keys is damaged.
    """
    key_id, now = secrets.token_hex(6), time.time()
    token = f"levit_{key_id}_{secrets.token_urlsafe(32)}"
    try:
        key = Key.model_validate(
            {
                "id": key_id,
                "name": name,
                "sha256": _digest(token),
                "scopes": scopes,
                "streams": streams,
                "created": now,
                "expires": None if lifetime_s is None else now + lifetime_s,
                "revoked": None,
                "rate": rate,
                "burst": burst,
                "in_flight": in_flight,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise Misused(f"{first['loc'][0]}: {first['msg']}, got {first['input']!a}") from None
    directory.make(state_dir)
    with _locked(state_dir) as keys:
        _write(state_dir, [*keys, key])
    return key, token


def revoke_key(state_dir: Path, key_id: str, *, again: bool = False) -> Key:
    """Return a key that counts no more; a running API knows within a second.

    Args:
        state_dir: where the keys are.
        key_id: of the key.
        again: whether it may have been revoked before.

    Raises:
        Misused: there is no such key, or it was revoked before.
        CorruptState: the file of keys is damaged.
    """
    if not state_dir.exists():
        raise Misused(f"there is no key {key_id!a} in {state_dir}")
    with _locked(state_dir) as keys:
        found = {key.id: key for key in keys}
        if key_id not in found:
            raise Misused(f"there is no key {key_id!a} in {state_dir}; `levit keys list` shows all")
        if found[key_id].revoked is not None:
            if again:
                return found[key_id]
            raise Misused(f"key {key_id} was revoked before")
        revoked = found[key_id].model_copy(update={"revoked": time.time(), "sha256": ""})
        _write(state_dir, [revoked if key.id == key_id else key for key in keys])
    return revoked


class Ring:
    """The keys as they count now; asking it costs a dictionary look-up and one SHA-256."""

    def __init__(self, keys: list[Key]) -> None:
        self._by_id = {key.id: key for key in keys if key.revoked is None}

    def find(self, token: str) -> Key | None:
        """Return the key of a token, or None when it is none of ours or counts no more."""
        named = _TOKEN.fullmatch(token)
        key = None if named is None else self._by_id.get(named[1])
        same = hmac.compare_digest(_digest(token), _NO_HASH if key is None else key.sha256)
        return key if same and key is not None and key.state == "active" else None

    def __contains__(self, key_id: str) -> bool:
        """Say whether a key is not revoked."""
        return key_id in self._by_id


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _seal(keys: object) -> str:
    canonical = json.dumps(keys, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _write(state_dir: Path, keys: list[Key]) -> None:
    listed = [key.model_dump(mode="json") for key in keys]
    for one in listed:  # a set has no order, and the hash is of bytes
        one["scopes"].sort()
        one["streams"] = None if one["streams"] is None else sorted(one["streams"])
    document = {"keys": listed, "sha256": _seal(listed)}
    directory.replace_file(state_dir / FILE, json.dumps(document, indent=1).encode(), mode=MODE)


@contextmanager
def _locked(state_dir: Path) -> Iterator[list[Key]]:
    """Yield the keys while no other command writes them."""
    descriptor = os.open(state_dir, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield read_keys(state_dir) or []
    finally:
        os.close(descriptor)
