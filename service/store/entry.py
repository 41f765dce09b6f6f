"""One entry of the ingest log as it was accepted, with the hash of its bytes.

    observed    samples, each with its label or without; a safetensors file {x, y?}, string labels
                in its metadata as `labels`, a JSON list
    predicted   samples and, in place of labels, the answers that their client was given
    labels      labels for samples of earlier entries; JSON {"<batch_id>:<index>": label}
    purge       an order to forget what its key has written; empty

A client's valid safetensors body is stored as it came, so that the bytes that were hashed on
arrival are the bytes that are learned. Redis checks nothing (a flipped byte in its append-only
file loads silently), therefore the hash is checked before anything is trained.
Dimension key: B batch.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self, get_args

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from service.engine.protocol import Array, Label, Labels
from service.errors import CorruptState
from service.inputs import InputSchema
from service.scopes import ANONYMOUS_ID

Kind = Literal["observed", "predicted", "labels", "purge"]
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


def encode_given(given: Mapping[str, Label]) -> bytes:
    """Return the payload that holds labels by sample id, in their order."""
    return json.dumps(dict(given), ensure_ascii=False).encode()


def decode_given(payload: bytes) -> dict[str, Label]:
    """Return what `encode_given` took.

    Raises:
        CorruptState: the bytes are no JSON object.
    """
    try:
        return dict(json.loads(payload))
    except (ValueError, TypeError) as error:
        raise CorruptState(f"a payload is no JSON object of labels: {error}") from None


def plain_label(labels: Labels | None, index: int) -> Label | None:
    """Return the label of one sample, or None where it has none."""
    label = None if labels is None else labels[index]
    if label is None or isinstance(label, str):
        return label or None
    return None if label < 0 else int(label)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What an entry says beside its payload."""

    batch_id: str
    schema: InputSchema
    """What a sample of the stream is."""
    n: int
    """Samples, or labels."""
    kind: Kind = "observed"
    key_id: str = ANONYMOUS_ID
    """Of the key that wrote it, or that it purges."""
    idempotency_key: str | None = None
    model_version: int | None = None
    """Of the snapshot that answered; None unless `predicted`."""
    traceparent: str | None = None
    """Of the request that brought it; None unless requests are traced."""

    @property
    def client_key(self) -> str | None:
        """Its Idempotency-Key as the service knows it."""
        return client_key(self.key_id, self.idempotency_key)

    def to_fields(self, payload: bytes) -> dict[str, str | int | bytes]:
        """Return the fields that XADD writes for this entry."""
        fields: dict[str, str | int | bytes] = {
            "batch_id": self.batch_id,
            "kind": self.kind,
            "version": VERSION,
            "key_id": self.key_id,
            "input": str(self.schema),
            "n": self.n,
            "sha256": hashlib.sha256(payload).hexdigest(),
            "payload": payload,
        }
        if self.idempotency_key is not None:
            fields["idempotency_key"] = self.idempotency_key
        if self.model_version is not None:
            fields["model_version"] = self.model_version
        if self.traceparent is not None:
            fields["traceparent"] = self.traceparent
        return fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry(Header):
    """One entry, read back from the log and found unharmed."""

    number: int
    """Ordinal in its stream, counted from 1, quarantined ones included."""
    position: str
    """Its id in the Redis stream."""
    x: Array
    """Samples [B, *schema.shape]; B is 0 where the entry has labels only."""
    labels: Labels | None
    answers: Labels | None = None
    """What was answered, one a sample; None unless `predicted`."""
    given: Mapping[str, Label] = field(default_factory=dict)
    """Labels by sample id; empty unless `labels`."""
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
            header, version = _header(fields), fields[b"version"].decode()
            payload, expected = fields[b"payload"], fields[b"sha256"].decode()
        except (KeyError, ValueError) as error:
            raise CorruptState(f"entry {position} lacks or garbles a field: {error}") from None
        kind = header["kind"]
        if kind not in get_args(Kind) or version != VERSION:
            raise CorruptState(
                f"entry {position} is {kind} version {version}, "
                f"not {', '.join(get_args(Kind))} version {VERSION}"
            )
        actual = hashlib.sha256(payload).hexdigest()
        if actual != expected:
            raise CorruptState(f"entry {position} has sha256 {actual}, expected {expected}")
        try:
            content = _content(kind, header["schema"], payload)
        except ValueError as error:
            raise CorruptState(f"entry {position} does not fit its schema: {error}") from None
        return cls(number=number, position=position, payload=payload, **header, **content)

    def label(self, index: int) -> Label | None:
        """Return the label of one sample, or None where it has none."""
        return plain_label(self.labels, index)


def _header(fields: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Return the fields of a `Header`.

    Raises:
        KeyError, ValueError: one is missing or garbled.
    """
    key, version = fields.get(b"idempotency_key"), fields.get(b"model_version")
    trace = fields.get(b"traceparent")
    return {
        "batch_id": fields[b"batch_id"].decode(),
        "kind": fields[b"kind"].decode(),
        "key_id": fields.get(b"key_id", ANONYMOUS_ID.encode()).decode(),
        "schema": InputSchema.parse(fields[b"input"].decode()),
        "n": int(fields[b"n"]),
        "idempotency_key": None if key is None else key.decode(),
        "model_version": None if version is None else int(version),
        "traceparent": None if trace is None else trace.decode(),
    }


def _content(kind: Kind, schema: InputSchema, payload: bytes) -> dict[str, Any]:
    """Return what the payload of an entry of a kind holds.

    Raises:
        CorruptState: it cannot be read.
        ValueError: its samples are not of the schema.
    """
    if kind == "purge":
        return {"x": schema.no_samples(), "labels": None}
    if kind == "labels":
        return {"x": schema.no_samples(), "labels": None, "given": decode_given(payload)}
    x, labels = decode_payload(payload)
    x = schema.canonical(x)
    if kind == "predicted":
        return {"x": x, "labels": None, "answers": labels}
    return {"x": x, "labels": labels}


State = Literal["queued", "learned", "quarantined"]
LabelOutcome = Literal["joined", "late", "unknown", "doubled"]
"""What became of one late label: its sample was learned with it; the sample is further back than
the window; there is no such sample; the sample had a label already."""
LETTERS: Mapping[LabelOutcome, str] = {"joined": "j", "late": "l", "unknown": "u", "doubled": "d"}
"""How a record spells the outcomes."""
MOST_RESULTS = 1000
"""Late labels of one entry whose outcomes are told one by one; a record is a letter longer each."""


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
    purged: Mapping[str, int] | None = None
    """What a purge did, samples: `replay` left the replay memory, labelled ones were `unlearned`,
    and so many are `remaining` counted. None unless it is one."""
    labels: Mapping[str, int] | None = None
    """How many of its labels had which outcome; None unless labels were handed in later."""
    results: str | None = None
    """The outcome of the first of them in their order, a letter each; see `LETTERS`."""

    @property
    def outcomes(self) -> list[LabelOutcome] | None:
        """The same in words."""
        words = {letter: outcome for outcome, letter in LETTERS.items()}
        return None if self.results is None else [words[letter] for letter in self.results]

    def to_record(self) -> str:
        """Return the JSON that lies under `names.batch(batch_id)`."""
        return json.dumps({name: v for name, v in asdict(self).items() if v is not None})

    @classmethod
    def from_record(cls, record: bytes | str) -> Self:
        """Return the status that `to_record` wrote."""
        return cls(**json.loads(record))
