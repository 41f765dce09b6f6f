"""One entry of the ingest log: a mini-batch as it was accepted, with the hash of its bytes.

The payload is a safetensors file {x, y?}; string labels travel in its metadata as `labels`, a
JSON list. A client's valid safetensors body is stored as it came, so that the bytes that were
hashed on arrival are the bytes that are learned. Redis checks nothing (a flipped byte in its
append-only file loads silently), therefore the hash is checked before anything is trained.
Dimension key: B batch.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from service.engine.protocol import Array, Label, Labels
from service.errors import CorruptState
from service.inputs import InputSchema
from service.scopes import ANONYMOUS_ID

KIND = "observed"
VERSION = "1"


def encode(x: Array, labels: Labels | None) -> bytes:
    """Return the payload that holds `x` [B, ...] and its labels.

    Args:
        x: samples in the wire layout of the schema, uint8 or float32.
        labels: int64 [B] with -1 for none, B strings with "" for none, or None.
    """
    tensors = {"x": np.ascontiguousarray(x)}
    if labels is None:
        return save(tensors)
    if isinstance(labels, np.ndarray):
        return save(tensors | {"y": np.ascontiguousarray(labels, dtype=np.int64)})
    return save(tensors, metadata={"labels": json.dumps(list(labels), ensure_ascii=False)})


def decode_payload(payload: bytes) -> tuple[Array, Labels | None]:
    """Return samples and labels of a payload that was checked when it was accepted.

    Raises:
        CorruptState: the bytes are no safetensors file with an `x`.
    """
    try:
        tensors = load(payload)
        x = tensors["x"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise CorruptState(f"a payload is no safetensors file with an x: {error}") from None
    if "y" in tensors:
        return x, tensors["y"]
    return x, _string_labels(payload)


def _string_labels(payload: bytes) -> list[str] | None:
    header_size = int.from_bytes(payload[:8], "little")
    header: dict[str, Any] = json.loads(payload[8 : 8 + header_size])
    listed = header.get("__metadata__", {}).get("labels")
    return None if listed is None else json.loads(listed)


def client_key(key_id: str, idempotency_key: str | None) -> str | None:
    """Return an Idempotency-Key as the service knows it: no client can guess another's."""
    return None if idempotency_key is None else f"{key_id}:{idempotency_key}"


def to_fields(
    *,
    batch_id: str,
    schema: InputSchema,
    n: int,
    payload: bytes,
    idempotency_key: str | None,
    key_id: str = ANONYMOUS_ID,
) -> dict[str, str | int | bytes]:
    """Return the fields that XADD writes for one accepted mini-batch."""
    fields: dict[str, str | int | bytes] = {
        "batch_id": batch_id,
        "key_id": key_id,
        "kind": KIND,
        "version": VERSION,
        "input": str(schema),
        "n": n,
        "sha256": hashlib.sha256(payload).hexdigest(),
        "payload": payload,
    }
    if idempotency_key is not None:
        fields["idempotency_key"] = idempotency_key
    return fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One mini-batch, read back from the log and found unharmed."""

    number: int
    """Ordinal in its stream, counted from 1, quarantined ones included."""
    position: str
    """Its id in the Redis stream."""
    batch_id: str
    key_id: str
    """Id of the key that wrote it."""
    idempotency_key: str | None
    schema: InputSchema
    n: int
    x: Array
    """Samples [B, *schema.shape]."""
    labels: Labels | None
    payload: bytes
    """The bytes as they lie in the log; kept when the entry is quarantined."""

    @classmethod
    def from_fields(cls, number: int, position: str, fields: Mapping[bytes, bytes]) -> Self:
        """Return the entry that `fields` describe.

        Raises:
            CorruptState: a field is missing or unknown to this version, or the payload is not
                the one that was hashed.
        """
        try:
            kind, version = fields[b"kind"].decode(), fields[b"version"].decode()
            payload, expected = fields[b"payload"], fields[b"sha256"].decode()
            batch_id, n = fields[b"batch_id"].decode(), int(fields[b"n"])
            schema = InputSchema.parse(fields[b"input"].decode())
        except (KeyError, ValueError) as error:
            raise CorruptState(f"entry {position} lacks or garbles a field: {error}") from None
        if (kind, version) != (KIND, VERSION):
            raise CorruptState(f"entry {position} is {kind} version {version}, not {KIND} 1")
        actual = hashlib.sha256(payload).hexdigest()
        if actual != expected:
            raise CorruptState(f"entry {position} has sha256 {actual}, expected {expected}")
        x, labels = decode_payload(payload)
        try:
            x = schema.canonical(x)
        except ValueError as error:
            raise CorruptState(f"entry {position} does not fit its schema: {error}") from None
        key = fields.get(b"idempotency_key")
        return cls(
            number=number,
            position=position,
            batch_id=batch_id,
            key_id=fields.get(b"key_id", ANONYMOUS_ID.encode()).decode(),
            idempotency_key=None if key is None else key.decode(),
            schema=schema,
            n=n,
            x=x,
            labels=labels,
            payload=payload,
        )

    @property
    def client_key(self) -> str | None:
        """Its Idempotency-Key as the service knows it."""
        return client_key(self.key_id, self.idempotency_key)

    def label(self, index: int) -> Label | None:
        """Return the label of one sample, or None where it has none."""
        label = None if self.labels is None else self.labels[index]
        if label is None or isinstance(label, str):
            return label or None
        return None if label < 0 else int(label)


State = Literal["queued", "learned", "quarantined"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatus:
    """What became of one mini-batch; the record behind GET /observations/{batch_id}."""

    batch_id: str
    state: State
    n: int
    position: str | None = None
    step: int | None = None
    """Entries learned up to and with this one; None unless learned."""
    expert: int | None = None
    """Id of the expert that was active; None unless learned."""
    reason: str | None = None
    """Why it was set aside; None unless quarantined."""

    def to_record(self) -> str:
        """Return the JSON that lies under `names.batch(batch_id)`."""
        return json.dumps({name: v for name, v in asdict(self).items() if v is not None})

    @classmethod
    def from_record(cls, record: bytes | str) -> Self:
        """Return the status that `to_record` wrote."""
        return cls(**json.loads(record))
