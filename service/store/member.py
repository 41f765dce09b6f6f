"""One sample of the replay memory as it lies in Redis: its field of the hash, and the value.

A value is a line of JSON {dtype, shape, label, sha256} and the sample's bytes.
"""

import hashlib
import json

import numpy as np

from service.engine.protocol import Array, Label, MemberId
from service.errors import CorruptState


def member_name(member: MemberId) -> str:
    """Return the field of the hash under which a member lies."""
    return f"{member[0]}:{member[1]}"


def member_id(field: bytes) -> MemberId:
    """Return whose field it is."""
    number, _, index = field.partition(b":")
    return int(number), int(index)


def encode(x: Array, label: Label | None) -> bytes:
    """Return the value of a member."""
    raw = x.tobytes()
    sha256 = hashlib.sha256(raw).hexdigest()
    header = {"dtype": str(x.dtype), "shape": x.shape, "label": label, "sha256": sha256}
    return json.dumps(header).encode() + b"\n" + raw


def decode(member: MemberId, value: bytes | None) -> tuple[Array, Label | None]:
    """Return the sample and the label that `encode` was given.

    Raises:
        CorruptState: it is not stored, or cannot be read.
    """
    if value is None:
        raise CorruptState(f"replay member {member_name(member)} is not stored")
    head, _, raw = value.partition(b"\n")
    try:
        header = json.loads(head)
        if hashlib.sha256(raw).hexdigest() != header["sha256"]:
            raise CorruptState(f"replay member {member_name(member)} is not what was written")
        x = np.frombuffer(raw, header["dtype"]).reshape(header["shape"])
        return x.copy(), header["label"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptState(f"replay member {member_name(member)} cannot be read: {error}") from None
