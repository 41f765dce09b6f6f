"""A directory of files that exists whole or not at all, and is what was written.

Recipe: write beside the target under a temporary name, fsync each file and the directory, rename,
fsync the parent. Without one of these steps a power cut can leave a directory that was reported
done and is not. `manifest.json` names each file with size and SHA-256 and carries its own hash, as
safetensors has no checksum: a flipped byte would load silently. Hashes tell damage, not forgery:
who may write the files may write hashes that fit, but no signature without the key (`sign_with`).
"""

import hashlib
import hmac
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from service.errors import CorruptState, SettingsError
from service.settings import PREFIX

MANIFEST = "manifest.json"
TEMPORARY = ".tmp-"
LEAST_KEY = 32
"""Bytes of the shortest key that is taken."""
_key: list[bytes] = []
"""That of this process; empty if it neither signs nor asks for signatures."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a manifest says of one file."""

    sha256: str
    size: int

    @classmethod
    def of(cls, content: bytes) -> Self:
        """Return the facts of a file that holds `content`."""
        return cls(hashlib.sha256(content).hexdigest(), len(content))


@dataclass(frozen=True, slots=True)
class StoredDirectory:
    """A directory written by `write`; its files are read one by one, each checked."""

    path: Path
    facts: Mapping[str, Any]
    """What the writer put into the manifest."""
    files: Mapping[str, FileFacts]

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            CorruptState: it is missing, or not what was written.
        """
        try:
            content = (self.path / name).read_bytes()
        except OSError as error:
            raise CorruptState(f"{self.path / name} cannot be read: {error}") from None
        if FileFacts.of(content) != self.files.get(name):
            raise CorruptState(f"{self.path / name} is not what was written: sha256 differs")
        return content

    @property
    def size(self) -> int:
        """Bytes of all files, the manifest left out."""
        return sum(file.size for file in self.files.values())


def write(
    path: Path,
    contents: Mapping[str, bytes],
    facts: Mapping[str, Any],
    *,
    linked: Mapping[str, StoredDirectory],
) -> StoredDirectory:
    """Return the directory that now lies at `path`, on disk, whole.

    Args:
        path: where it shall be; must not exist, its parent must.
        contents: new files by name.
        facts: what the manifest says besides; JSON-able, without `files`, `sha256` and `hmac`.
        linked: files, by name, that are hard links to the file of that name in a directory
            written before, because their bytes are the same.

    Raises:
        OSError: the disk is full or refuses; nothing is left at `path` (or, had only the last
            fsync failed, a whole directory that a power cut may take away).
    """
    temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        files = {name: FileFacts.of(content) for name, content in contents.items()}
        files |= {name: source.files[name] for name, source in linked.items()}
        for name, source in linked.items():
            (temporary / name).hardlink_to(source.path / name)
        for name, content in contents.items():
            _write_file(temporary / name, content)
        _write_file(temporary / MANIFEST, _seal(facts, files))
        fsync_directory(temporary)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_directory(path.parent)
    return StoredDirectory(path, dict(facts), files)


def sign_with(file: Path | None) -> None:
    """Let this process sign what it writes and refuse what is not signed; None: neither.

    Called once, as a process starts: all that it reads and writes is of one operator.

    Raises:
        SettingsError: the file cannot be read, or holds too little to be a key.
    """
    _key.clear()
    if file is None:
        return
    try:
        key = file.read_bytes().strip()
    except OSError as error:
        raise SettingsError(f"{PREFIX}STATE_HMAC_KEY_FILE: {error}") from None
    if len(key) < LEAST_KEY:
        raise SettingsError(
            f"{PREFIX}STATE_HMAC_KEY_FILE: expected at least {LEAST_KEY} bytes, got {len(key)}"
        )
    _key.append(key)


def make(path: Path) -> None:
    """Have a directory whose name is on disk, and those it lies in."""
    if not path.exists():
        make(path.parent)
        path.mkdir(exist_ok=True)
        fsync_directory(path.parent)


def open_directory(path: Path) -> StoredDirectory:
    """Return the directory at `path`; its files are checked when they are read.

    Raises:
        CorruptState: the manifest is missing, not what was written or, with a key, not signed.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        sealed, signed = manifest.pop("sha256"), str(manifest.pop("hmac", "")).encode()
        files = {name: FileFacts(**file) for name, file in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptState(f"{path / MANIFEST} cannot be read: {error}") from None
    canonical = _canonical(manifest)
    if hashlib.sha256(canonical).hexdigest() != sealed:
        raise CorruptState(f"{path / MANIFEST} is not what was written: sha256 differs")
    if _key and not hmac.compare_digest(_signature(canonical), signed):
        raise CorruptState(f"{path / MANIFEST} is not signed with {PREFIX}STATE_HMAC_KEY_FILE")
    del manifest["files"]
    return StoredDirectory(path, manifest, files)


def replace_file(path: Path, content: bytes, *, mode: int | None = None) -> None:
    """Replace a small file atomically and durably; `mode` holds before there is any content."""
    temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        _write_file(temporary, content, mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # a full disk is met again and again
        raise
    fsync_directory(path.parent)


def remove(path: Path) -> None:
    """Remove a directory; a crash in the middle leaves only temporary names behind."""
    temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    path.rename(temporary)
    shutil.rmtree(temporary)


def remove_temporaries(parent: Path) -> None:
    """Remove what crashed writers left in `parent`."""
    for path in parent.glob(f"{TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _seal(facts: Mapping[str, Any], files: Mapping[str, FileFacts]) -> bytes:
    """Return the manifest; hash and signature are those of its canonical form without the two."""
    manifest = {**facts, "files": {name: asdict(file) for name, file in files.items()}}
    canonical = _canonical(manifest)
    sealed = {"sha256": hashlib.sha256(canonical).hexdigest()}
    if _key:
        sealed["hmac"] = _signature(canonical).decode()
    return json.dumps(manifest | sealed, indent=1).encode()


def _signature(canonical: bytes) -> bytes:
    return hmac.new(_key[0], canonical, hashlib.sha256).hexdigest().encode()


def _canonical(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()


def _write_file(path: Path, content: bytes, mode: int | None = None) -> None:
    with path.open("xb") as file:
        if mode is not None:
            os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
