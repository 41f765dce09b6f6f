"""Samples that were answered and are kept for labels that come later, on their way into the log."""

import hashlib

import numpy as np

from service.api.codec import Batch
from service.api.predictor import Answer
from service.engine.protocol import Label, Labels
from service.store.entry import encode
from service.store.submission import Submission


def kept(batch: Batch, answer: Answer) -> Submission:
    """Return what the log takes in for samples and the labels that their client is about to get.

    A retry has the digest of the samples alone: by then another model may answer otherwise, and
    what counts is the answer in the log.
    """
    return Submission(
        schema=batch.schema,
        labels_kind=None,
        n=len(batch.x),
        distinct_labels=(),
        payload=encode(batch.x, _wired(answer.labels)),
        kind="predicted",
        model_version=answer.info.version,
        idempotency_key=None,
        digest=hashlib.sha256(b"predicted\n" + encode(batch.x, None)).hexdigest(),
    )


def _wired(answers: list[Label | None]) -> Labels:
    """Return answers as an entry holds them; -1 or "" where there was none."""
    if any(isinstance(one, str) for one in answers):
        return ["" if one is None else str(one) for one in answers]
    return np.array([-1 if one is None else one for one in answers], np.int64)
