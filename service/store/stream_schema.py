"""What a stream has settled: the shape of a sample and the kind of its labels."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from service.engine.protocol import Label
from service.errors import Unprocessable
from service.inputs import InputSchema

LabelKind = Literal["int", "string"]


@dataclass(frozen=True, slots=True)
class StreamSchema:
    """What the stream has settled so far."""

    input: InputSchema
    labels: LabelKind | None
    """None until the first labelled batch."""

    def with_batch(self, found: InputSchema, labels: LabelKind | None) -> "StreamSchema":
        """Return the schema once a batch of these samples and labels is part of the stream.

        Raises:
            Unprocessable: it does not fit what earlier batches, or LEVIT_INPUT, fixed.
        """
        if found != self.input:
            raise Unprocessable("schema_mismatch", f"expected samples of {self.input}, got {found}")
        if labels is None:
            return self
        if self.labels not in (None, labels):
            raise Unprocessable(
                "label_kind_mismatch", f"expected {self.labels} labels, got {labels} labels"
            )
        return StreamSchema(self.input, labels)

    def to_record(self) -> str:
        """Return the JSON that lies under `names.schema`."""
        return json.dumps({"input": str(self.input), "labels": self.labels})

    @classmethod
    def from_record(cls, record: bytes) -> Self:
        """Return the schema that `to_record` wrote."""
        fields = json.loads(record)
        return cls(InputSchema.parse(fields["input"]), fields["labels"])


def check_declared(labels: Iterable[str], declared: Sequence[Label] | None) -> None:
    """Check that labels are among those that the stream may have.

    Args:
        labels: of a batch, as text.
        declared: None where any will do.

    Raises:
        Unprocessable: `unknown_label`, naming one.
    """
    unknown = set() if declared is None else set(labels) - {str(label) for label in declared}
    if unknown:
        raise Unprocessable(
            "unknown_label",
            f"expected one of {len(declared or ())} declared labels, got {min(unknown)!a}",
        )
