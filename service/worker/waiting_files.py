"""The samples that wait for a label in the files of checkpoints, each written about once.

    checkpoints/ckpt-<seq>/waiting.safetensors, the arrays of a `WaitingState`
                           waiting-<seq of the checkpoint that wrote it>.safetensors ...,
                           payloads by entry number; the manifest lists the numbers of each file

A checkpoint writes one file with new payloads and links to the files of the one before. A file is
left out, and what is still needed of it written anew, once more than half of it is not needed any
more, or where the new file is no smaller: so there are few files, none much larger than its worth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from service.store.directory import StoredDirectory
from service.worker.waiting import WaitingState, waiting_numbers

ARRAYS = "waiting.safetensors"
FACTS, LISTED = "waiting", "payloads"
"""What the manifest calls the plain facts, and the numbers by file, spaces between."""


@dataclass(frozen=True, slots=True)
class WaitingFiles:
    """What a checkpoint needs to hold the samples that wait."""

    contents: Mapping[str, bytes]
    linked: Mapping[str, StoredDirectory]
    facts: Mapping[str, Any]
    """For its manifest."""


def waiting_files(state: WaitingState, earlier: StoredDirectory | None, seq: int) -> WaitingFiles:
    """Return the files to write and those to link to.

    Args:
        state: what they shall hold.
        earlier: the checkpoint restored or written last.
        seq: of the checkpoint to be written.
    """
    payloads = state.payloads
    listed = {} if earlier is None else _listed(earlier)
    new = payloads.keys() - {number for numbers in listed.values() for number in numbers}
    size = sum(len(payloads[number]) for number in new)
    linked: dict[str, StoredDirectory] = {}
    for name in sorted(listed, reverse=True):
        needed = listed[name] & payloads.keys()
        worth = sum(len(payloads[number]) for number in needed)
        if earlier is not None and worth > max(size, earlier.files[name].size // 2):
            linked[name] = earlier
        else:
            new, size = new | needed, size + worth
    numbers = {name: listed[name] for name in linked}
    contents = {ARRAYS: save(dict(state.arrays))}
    if new:
        name = f"waiting-{seq:08}.safetensors"
        arrays = {str(number): np.frombuffer(payloads[number], np.uint8) for number in sorted(new)}
        contents[name], numbers[name] = save(arrays), new
    texts = {name: " ".join(map(str, sorted(one))) for name, one in numbers.items()}
    return WaitingFiles(contents, linked, {FACTS: state.facts, LISTED: texts})


def read_waiting(stored: StoredDirectory) -> WaitingState:
    """Return the state that the files of a checkpoint hold.

    Raises:
        CorruptState: a file is missing or not what was written.
    """
    arrays = load(stored.read(ARRAYS))
    payloads = _payloads(stored, waiting_numbers(arrays))
    return WaitingState(facts=stored.facts[FACTS], arrays=arrays, payloads=payloads)


def _payloads(stored: StoredDirectory, numbers: Sequence[int]) -> dict[int, bytes]:
    """Return the payloads of these entries; a file may hold others, which wait no longer."""
    found: dict[int, bytes] = {}
    for name in _listed(stored):
        arrays = load(stored.read(name))
        found |= {int(number): array.tobytes() for number, array in arrays.items()}
    return {number: found[number] for number in numbers}


def _listed(stored: StoredDirectory) -> dict[str, set[int]]:
    facts: Mapping[str, str] = stored.facts[LISTED]
    return {name: set(map(int, text.split())) for name, text in facts.items()}
