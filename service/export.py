"""A stretch of the history as one file, .npz or .parquet, for whatever else wants to learn from it.

Two walks: the first finds out how large the arrays are and of what type, the second writes them.
Samples go straight into the file, a few mini-batches at a time; beside them only labels and what
is said once per entry is in memory. uint8 samples of a stream that also has float32 ones become
float32 from 0 to 1, as the learner sees them. A sample has the label it came with, or the first
that was sent later, in time for the learner or not.
Dimension key: N samples, B samples of an entry, E entries.
"""

import os
import uuid
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from service.engine.protocol import Array, Label, Labels
from service.errors import IncompleteHistory, SettingsError
from service.store.decisions import Decisions
from service.store.directory import TEMPORARY
from service.store.entry import Entry

PARQUET_EXTRA = "install it with: pip install 'levit-stream[parquet]'"
ROW_GROUP_BYTES = 64 * 2**20
"""Size from which on a row group of a Parquet file is written."""
FORMATS = (".npz", ".parquet")

Walk = Callable[[str], Iterator[Entry]]
"""Walks through the entries to export, from the first, to do what the text says."""


@dataclass(slots=True)
class Survey:
    """What the arrays will be."""

    x: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.uint8))
    shape: tuple[int, ...] = ()
    """Of one sample."""
    strings: bool = False
    """Whether labels are strings; else integers."""
    samples: int = 0
    entries: int = 0
    late: dict[str, Label] = field(default_factory=dict)
    """Labels that came later than their samples, by sample id."""

    def add(self, entry: Entry, *, skipped: bool) -> None:
        """Take an entry into account; labels that were set aside are none."""
        self.x = np.promote_types(self.x, entry.x.dtype)
        self.shape = entry.schema.shape
        for sample_id, label in () if skipped else entry.given.items():
            self.late.setdefault(sample_id, label)
            self.strings |= isinstance(label, str)
        self.strings |= isinstance(entry.labels, list)
        self.samples += len(entry.x)
        self.entries += 1

    def samples_of(self, entry: Entry) -> Array:
        """Return the samples [B, *shape] of an entry in the type of all."""
        if entry.x.dtype == self.x:
            return np.ascontiguousarray(entry.x)
        unit: Array = entry.x.astype(self.x) / self.x.type(255)
        return unit

    def labels_of(self, entry: Entry) -> Labels:
        """Return the labels [B] of an entry's samples; -1 or "" for none."""
        ids = (f"{entry.batch_id}:{i}" for i in range(len(entry.x)))
        known = [entry.label(i) for i in range(len(entry.x))]
        listed = [
            self.late.get(sample_id) if label is None else label
            for sample_id, label in zip(ids, known, strict=True)
        ]
        if self.strings:
            return ["" if label is None else str(label) for label in listed]
        return np.array([-1 if label is None else label for label in listed], np.int64)


def check_out(out: Path, *, force: bool) -> None:
    """Refuse a file that cannot be written, before anything is read.

    Raises:
        SettingsError: it is of no known format, there already, or its format needs an extra.
    """
    if out.suffix not in FORMATS:
        raise SettingsError(f"expected a file that ends in {' or '.join(FORMATS)}, got {out}")
    if out.exists() and not force:
        raise SettingsError(f"{out} exists; --force replaces it")
    if out.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401  only whether it is there
        except ImportError:
            raise SettingsError(f"a .parquet file needs pyarrow; {PARQUET_EXTRA}") from None


def export(out: Path, walk: Walk, decisions: Decisions) -> Survey:
    """Write what `walk` yields to a file; it is there whole or not at all.

    Args:
        out: see `check_out`.
        walk: yields the same entries each of two times.
        decisions: say which of them were set aside.

    Raises:
        IncompleteHistory: there is no entry.
        OSError: the disk is full or refuses; nothing is left behind.
    """
    survey = Survey()
    for entry in walk("look"):
        survey.add(entry, skipped=decisions.skips(entry.number) is not None)
    if not survey.entries:
        raise IncompleteHistory("there is nothing to export: the log has no such entry")
    temporary = out.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    write = _write_npz if out.suffix == ".npz" else _write_parquet
    try:
        write(temporary, walk("write"), survey, decisions)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return survey


def _write_npz(path: Path, entries: Iterator[Entry], survey: Survey, decisions: Decisions) -> None:
    """Write arrays: x, y and entry [N]; number, position, batch_id, kind, skipped, reason [E]."""
    labels: list[Labels] = []
    about: list[tuple[int, str, str, str, int, str | None]] = []
    with zipfile.ZipFile(path, "w") as archive:
        with _member(archive, "x", survey.x, (survey.samples, *survey.shape)) as file:
            for one in entries:
                file.write(survey.samples_of(one).tobytes())
                labels.append(survey.labels_of(one))
                reason = decisions.skips(one.number)
                samples = len(one.x)
                about.append((one.number, one.position, one.batch_id, one.kind, samples, reason))
        number, position, batch_id, kind, n, reasons = zip(*about, strict=True)
        columns = {
            "y": np.concatenate(labels),
            "entry": np.repeat(np.array(number, np.int64), n),
            "number": np.array(number, np.int64),
            "position": np.array(position),
            "batch_id": np.array(batch_id),
            "kind": np.array(kind),
            "skipped": np.array([reason is not None for reason in reasons]),
            "reason": np.array([reason or "" for reason in reasons]),
        }
        for name, array in columns.items():
            with _member(archive, name, array.dtype, array.shape) as file:
                file.write(array.tobytes())


def _member(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> IO[bytes]:
    """Return a member that has its header and waits for the bytes of the array."""
    file = archive.open(f"{name}.npy", "w", force_zip64=True)
    descr = npy.dtype_to_descr(dtype)
    npy.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file


def _write_parquet(
    path: Path, entries: Iterator[Entry], survey: Survey, decisions: Decisions
) -> None:
    """Write one row a sample: x, y, entry, position, batch_id, kind, skipped, reason."""
    import pyarrow
    from pyarrow import parquet

    width = int(np.prod(survey.shape))
    schema = pyarrow.schema(
        [
            ("x", pyarrow.list_(pyarrow.from_numpy_dtype(survey.x), width)),
            ("y", pyarrow.string() if survey.strings else pyarrow.int64()),
            ("entry", pyarrow.int64()),
            ("position", pyarrow.string()),
            ("batch_id", pyarrow.string()),
            ("kind", pyarrow.string()),
            ("skipped", pyarrow.bool_()),
            ("reason", pyarrow.string()),
        ],
        metadata={"shape": "x".join(map(str, survey.shape))},
    )

    def rows(one: Entry) -> Any:  # noqa: ANN401  pyarrow has no types
        reason = decisions.skips(one.number)
        x = pyarrow.array(survey.samples_of(one).reshape(-1))
        labels = survey.labels_of(one)
        listed = labels.tolist() if isinstance(labels, np.ndarray) else labels
        once = (one.number, one.position, one.batch_id, one.kind, reason is not None, reason)
        columns = [
            pyarrow.FixedSizeListArray.from_arrays(x, width),
            [None if label in (-1, "") else label for label in listed],
            *([value] * len(one.x) for value in once),
        ]
        arrays = [
            pyarrow.array(column, kind.type) if isinstance(column, list) else column
            for column, kind in zip(columns, schema, strict=True)
        ]
        return pyarrow.record_batch(arrays, schema=schema)

    with parquet.ParquetWriter(path, schema) as writer:
        waiting: list[Any] = []
        for one in entries:
            waiting.append(rows(one))
            if sum(batch.nbytes for batch in waiting) >= ROW_GROUP_BYTES:
                writer.write_table(pyarrow.Table.from_batches(waiting))
                waiting = []
        if waiting:
            writer.write_table(pyarrow.Table.from_batches(waiting))
