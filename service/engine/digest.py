"""One hash over everything a learner is: equal hashes, equal learners, bit by bit."""

import hashlib
import json

from service.engine.protocol import EngineState


def digest(state: EngineState) -> str:
    """Return the SHA-256 over every array and value of a state, hexadecimal.

    The payloads of the replay memory are not part of a state; their ids are.
    """
    values = json.loads(json.dumps(state.values))  # keys as a manifest gives them back
    hashed = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    arrays = {"members": state.members}
    arrays |= {f"served.{name}": array for name, array in state.served.items()}
    arrays |= {f"training.{name}": array for name, array in state.training.items()}
    for expert, tensors in state.frozen.items():
        arrays |= {f"frozen.{expert}.{name}": array for name, array in tensors.items()}
    for name in sorted(arrays):
        hashed.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        hashed.update(arrays[name].tobytes())
    return hashed.hexdigest()
