"""The inference process: predictors that answer beside the process that has the clients.

    python -m service.engine.inference FD FD ...

Python runs one thread at a time, so a forward pass beside HTTP would wait for it at every
operation. Each file descriptor is a connection with a thread of its own. It ends when the
process that started it does, however that came: its connections are closed then.
"""

import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from service.engine.load import load_engines
from service.engine.messages import Connection, Message
from service.engine.protocol import Engines, EngineState, Predictor, Tensors
from service.errors import CorruptState


@dataclass(frozen=True, slots=True)
class _Model:
    """A predictor, and the numbers of the frozen experts that it shares with others."""

    predictor: Predictor
    frozen: Mapping[int, Tensors]


class Host:
    """Answers what the other process asks of the models that it has sent."""

    def __init__(self, engines: Engines) -> None:
        """Begin without a model."""
        self._engines = engines
        self._models: dict[int, _Model] = {}

    def serve(self, connection: Connection) -> None:
        """Answer what comes by one connection, until its other end is closed."""
        try:
            while True:
                asked = connection.receive()
                connection.send(*self._answer(asked))
        except (EOFError, OSError):
            connection.close()

    def _answer(self, asked: Message) -> Message:
        try:
            if asked.facts["ask"] == "load":
                return self._load(asked)
            return _told(self._models[asked.facts["model"]].predictor, asked)
        except CorruptState as error:
            return Message({"corrupt": str(error)}, {})
        except Exception:  # noqa: BLE001  the other process logs it
            return Message({"failed": traceback.format_exc()}, {})

    def _load(self, asked: Message) -> Message:
        """Make a model of a state; only one is sent at a time."""
        facts = asked.facts
        for gone in facts["forget"]:
            self._models.pop(gone, None)
        groups: dict[str, dict[str, Any]] = {}
        for name, array in asked.arrays.items():
            group, own = name.split("/", 1)
            groups.setdefault(group, {})[own] = array
        shared = {n: t for model in self._models.values() for n, t in model.frozen.items()}
        frozen = {
            n: shared[n] if n in shared else groups.get(str(n), {})
            for n in facts["frozen"].values()
        }
        state = EngineState(
            frozen={int(expert): frozen[n] for expert, n in facts["frozen"].items()},
            served=groups.get("served", {}),
            training={},
            members=np.empty((0, 2), np.int64),
            values=facts["values"],
        )
        predictor = self._engines.predictor(state)
        self._models[facts["model"]] = _Model(predictor, frozen)
        return Message({"schema": str(predictor.schema)}, {})


def _told(predictor: Predictor, asked: Message) -> Message:
    """Return what a model says; the arrays of the answer under the names of its fields."""
    match asked.facts["ask"]:
        case "predict":
            found = predictor.predict(asked.arrays["x"])
            arrays = {n: getattr(found, n) for n in ("probabilities", "experts", "novelty")}
            return Message({"classes": list(found.classes)}, arrays)
        case "explain":
            why = predictor.explain(asked.arrays["x"])
            kinds = [None if heat is None else heat.kind for heat in why.heat]
            cells = {f"heat/{i}": h.cells for i, h in enumerate(why.heat) if h is not None}
            facts = {"ids": list(why.ids), "parts": [*map(dict, why.parts)], "heat": kinds}
            return Message(facts, {"weights": why.weights, "novelty": why.novelty, **cells})
        case "features":
            return Message({}, {"features": predictor.features(asked.arrays["x"])})
        case _:
            return Message({}, {"drawn": predictor.draw(asked.facts["expert"], asked.facts["n"])})


def run(engines: Engines, fds: list[int]) -> None:
    """Answer by connections that are open as these file descriptors, until one is closed."""
    host = Host(engines)
    first, *others = [Connection(socket.socket(fileno=fd)) for fd in fds]
    for connection in others:
        threading.Thread(target=_serve, args=(host, connection), daemon=True).start()
    _serve(host, first)


def _serve(host: Host, connection: Connection) -> NoReturn:
    """Answer by one connection; without it the process ends, as nobody would ever answer there."""
    try:
        host.serve(connection)
    except BaseException:  # noqa: BLE001  which it was is told
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main() -> None:
    """Run with the real engines; whoever stops the service stops it by way of its parent."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    run(load_engines(1), [int(fd) for fd in sys.argv[1:]])


if __name__ == "__main__":
    main()
