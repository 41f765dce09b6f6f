"""Labels by sample id, as POST /labels takes them: JSON `{"labels": {"<batch_id>:<i>": label}}`.

They go into the log in the order in which the body lists them.
"""

import hashlib
import re

import numpy as np

from service.api.bounds import Limits, check_labels
from service.api.json_body import parse_json, read_labels
from service.engine.protocol import Label
from service.errors import TooLarge, Unprocessable
from service.store.entry import encode_given
from service.store.submission import Submission

_SAMPLE_ID = re.compile(r"[0-9a-f]{32}:(0|[1-9][0-9]{0,8})")


def read_given(body: bytes, limits: Limits) -> Submission:
    """Return what the log takes in for a body; it is still without an Idempotency-Key.

    Raises:
        ServiceError: 400, 413 or 422, naming what is wrong.
    """
    document = parse_json(body)
    if not isinstance(document, dict) or document.keys() != {"labels"}:
        raise Unprocessable("bad_body", "expected a JSON object with the one field labels")
    found = document["labels"]
    if not isinstance(found, dict) or not found:
        raise Unprocessable("bad_body", "expected labels as an object of at least one label")
    if len(found) > limits.max_batch:
        raise TooLarge(
            "batch_too_large", f"expected at most {limits.max_batch} labels, got {len(found)}"
        )
    given = dict(zip(found, _labels(list(found.values())), strict=True))
    for place, sample_id in enumerate(given):
        if not _SAMPLE_ID.fullmatch(sample_id):
            raise Unprocessable(
                "bad_sample_id",
                "expected sample ids of a batch_id, a colon and an index, "
                f"got another one at label {place}",
            )
    return Submission(
        schema=None,
        labels_kind="string" if isinstance(next(iter(given.values())), str) else "int",
        n=len(given),
        distinct_labels=sorted(set(given.values()), key=str),
        payload=encode_given(given),
        kind="labels",
        idempotency_key=None,
        digest=hashlib.sha256(b"labels\n" + body).hexdigest(),
    )


def _labels(listed: list[object]) -> list[Label]:
    """Return the labels, each one that a stream may have.

    Raises:
        Unprocessable: `bad_label` or `mixed_labels`.
    """
    if None in listed:
        place = listed.index(None)
        raise Unprocessable("bad_label", f"expected labels, got null at label {place}")
    labels = read_labels(listed)
    if labels is None:
        return []
    check_labels(labels, len(listed))
    return labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
