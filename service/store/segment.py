"""One file of the archive: records behind each other, each checked from its first to its last byte.

    record   "LVA1", size of the header u32, size of the payload u64, CRC-32 of these 16 bytes,
             SHA-256 of all 20 and the header, the header, the payload
    header   JSON {number, position, fields}: an entry of the log without its payload

The payload is checked against `sha256` among the fields: the hash that was taken when the batch
was accepted. The CRC tells a size that was damaged from a record that a crash cut short.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from service.errors import CorruptState

MAGIC = b"LVA1"
_SIZES, _CRC = struct.Struct("<4sIQ"), struct.Struct("<I")
_PREFIX = _SIZES.size + _CRC.size
_HASH = 32


class CutShort(CorruptState):
    """The file ends within a record: what a crash leaves of a record that was being written."""


@dataclass(frozen=True, slots=True)
class Record:
    """An entry of the log as it was, unread."""

    number: int
    """Ordinal in the stream, counted from 1."""
    position: str
    """Its id in the Redis stream."""
    fields: Mapping[bytes, bytes]
    """All fields, the payload included."""


def encode(record: Record) -> bytes:
    """Return the bytes of a record.

    Raises:
        CorruptState: the payload is not the one that was hashed when it was accepted.
    """
    payload = record.fields.get(b"payload", b"")
    if _sha256(payload) != record.fields.get(b"sha256"):
        raise CorruptState(f"entry {record.number} at {record.position} fails its sha256")
    facts = {
        "number": record.number,
        "position": record.position,
        "fields": {
            _text(name): _text(v) for name, v in record.fields.items() if name != b"payload"
        },
    }
    header = json.dumps(facts).encode()
    sizes = _SIZES.pack(MAGIC, len(header), len(payload))
    prefix = sizes + _CRC.pack(zlib.crc32(sizes))
    return b"".join([prefix, hashlib.sha256(prefix + header).digest(), header, payload])


def records(path: Path, number: int) -> Iterator[tuple[int, Record]]:
    """Yield the records of a file, each with the offset of its end.

    Args:
        path: the file.
        number: of its first entry.

    Raises:
        CutShort: the file ends within a record.
        CorruptState: a record is not what was written; what came before has been yielded.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        while prefix := file.read(_PREFIX):
            try:
                record = _read(file, prefix)
            except CorruptState as error:
                raise type(error)(f"entry {number} in {path}: {error}") from None
            if record.number != number:
                raise CorruptState(f"expected entry {number} in {path}, found {record.number}")
            number += 1
            yield file.tell(), record


def _read(file: BinaryIO, prefix: bytes) -> Record:
    sizes, crc = prefix[: _SIZES.size], prefix[_SIZES.size :]
    if len(prefix) < _PREFIX:
        raise CutShort("the file ends within the sizes")
    if _CRC.pack(zlib.crc32(sizes)) != crc:
        raise CorruptState("the sizes are not what was written: crc32 differs")
    magic, header_size, payload_size = _SIZES.unpack(sizes)
    if magic != MAGIC:
        raise CorruptState(f"expected {MAGIC!r}, got {magic!r}")
    sealed, header = _exactly(file, _HASH), _exactly(file, header_size)
    if hashlib.sha256(prefix + header).digest() != sealed:
        raise CorruptState("the header is not what was written: sha256 differs")
    facts = json.loads(header)
    payload = _exactly(file, payload_size)
    fields = {_bytes(name): _bytes(value) for name, value in facts["fields"].items()}
    if _sha256(payload) != fields[b"sha256"]:
        raise CorruptState("the payload is not what was accepted: sha256 differs")
    return Record(facts["number"], facts["position"], {**fields, b"payload": payload})


def _exactly(file: BinaryIO, size: int) -> bytes:
    content = file.read(size)
    if len(content) < size:
        raise CutShort(f"the file ends {size - len(content)} bytes too early")
    return content


def _sha256(payload: bytes) -> bytes:
    return hashlib.sha256(payload).hexdigest().encode()


def _text(value: bytes) -> str:
    return value.decode(errors="surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
