"""Predictors that live in inference processes, as the process with the clients sees them.

A frozen expert is sent once, however many snapshots share it. The inference processes are
started again when one has died: whoever follows the snapshots sees that its model is lost, and
sends the newest one. See `service.engine.inference`.
Dimension key: B batch, D features.
"""

import queue
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from itertools import count
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import structlog
from numpy.typing import NDArray

from service.engine.explanation import Explanation, Heat
from service.engine.messages import Connection, Message
from service.engine.protocol import Array, EngineState, Prediction, Tensors
from service.errors import CorruptState, Unavailable
from service.inputs import InputSchema

CONNECTIONS: Final = 8
"""Questions that a process answers at a time, those of all streams together; others wait."""
STOP_S: Final = 5.0
"""Longest wait for the process to end before it is killed."""
_log = structlog.get_logger()


class _Child:
    """One run of the inference process, and the connections to it."""

    def __init__(self, command: list[str]) -> None:
        pairs = [socket.socketpair() for _ in range(CONNECTIONS)]
        fds = [far.fileno() for _, far in pairs]
        # It ends when its connections do, so it needs no signal when this process is killed.
        self._process = subprocess.Popen(  # noqa: S603  our own module
            [*command, *map(str, fds)], pass_fds=fds, stdin=subprocess.DEVNULL
        )
        for _, far in pairs:
            far.close()
        self._connections = [Connection(near) for near, _ in pairs]
        self._idle: queue.LifoQueue[Connection] = queue.LifoQueue()
        for connection in self._connections:
            self._idle.put(connection)
        self.asked = 0
        """Questions that it has not answered yet."""

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def ended(self) -> int | None:
        """Its exit code, None while it runs."""
        return self._process.poll()

    def ask(self, facts: Mapping[str, Any], arrays: Tensors) -> Message:
        """Return its answer.

        Raises:
            ConnectionError: it has ended.
            CorruptState: the state that it was sent is none.
            RuntimeError: it could not answer; with its traceback.
        """
        connection = self._idle.get()
        try:
            connection.send(facts, arrays)
            answer = connection.receive()
        except (EOFError, OSError) as error:
            raise ConnectionError("the inference process has ended") from error
        except BaseException:  # half a message: the answer would come to whoever asks next
            self._process.kill()
            raise
        finally:
            self._idle.put(connection)
        if (corrupt := answer.facts.get("corrupt")) is not None:
            raise CorruptState(corrupt)
        if (failed := answer.facts.get("failed")) is not None:
            raise RuntimeError(f"in the inference process:\n{failed}")
        return answer

    def close(self) -> None:
        """Let it end, and see that it does."""
        for connection in self._connections:
            connection.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class RemotePredictor:
    """A `service.engine.protocol.Predictor` in every inference process."""

    def __init__(self, children: Sequence[_Child], model: int, schema: InputSchema) -> None:
        self._children = children
        self._choosing = threading.Lock()
        self._model = model
        self._schema = schema

    @property
    def schema(self) -> InputSchema:
        """What a sample is."""
        return self._schema

    @property
    def lost(self) -> bool:
        """Whether one of its processes has ended."""
        return any(child.ended is not None for child in self._children)

    def predict(self, x: Array) -> Prediction:
        """Return the answers for samples [B, *schema.shape], uint8 or float32.

        Raises:
            Unavailable: `prediction_failed`, a process has ended; it is started again.
        """
        answer = self._ask("predict", {"x": x})
        return Prediction(classes=answer.facts["classes"], **answer.arrays)

    def explain(self, x: Array) -> Explanation:
        """Return why the samples [B, *schema.shape] are answered as they are.

        Raises:
            Unavailable: as `predict`.
        """
        facts, arrays = self._ask("explain", {"x": x})
        return Explanation(
            ids=facts["ids"],
            weights=arrays["weights"],
            parts=facts["parts"],
            novelty=arrays["novelty"],
            heat=[
                None if kind is None else Heat(kind, arrays[f"heat/{i}"])
                for i, kind in enumerate(facts["heat"])
            ],
        )

    def features(self, x: Array) -> NDArray[np.float32]:
        """Return what samples [B, *schema.shape] are to the learner, [B, D].

        Raises:
            Unavailable: as `predict`.
        """
        return self._ask("features", {"x": x}).arrays["features"]

    def draw(self, expert: int, n: int) -> Array:
        """Return n samples of an expert's density model; see the protocol.

        Raises:
            Unavailable: as `predict`.
        """
        return self._ask("draw", {}, expert=expert, n=n).arrays["drawn"]

    def _ask(self, question: str, arrays: Tensors, **facts: int) -> Message:
        with self._choosing:
            child = min(self._children, key=lambda child: child.asked)
            child.asked += 1
        try:
            return child.ask({"ask": question, "model": self._model, **facts}, arrays)
        except ConnectionError:
            raise Unavailable(
                "prediction_failed", "the model's process is started again", retry_after_s=5
            ) from None
        finally:
            with self._choosing:
                child.asked -= 1


class InferenceProcesses:
    """Makes predictors in processes of their own; the end of `with` ends them.

    All of them hold every model, and each question goes to the one with the fewest.
    """

    def __init__(self, n: int, *, module: str = "service.engine.inference") -> None:
        """Prepare; `start` starts them.

        Args:
            n: how many, each computes on one CPU thread.
            module: what runs in them.
        """
        self._n = n
        self._command = [sys.executable, "-m", module]
        self._children: list[_Child] = []
        self._models: dict[int, Mapping[int, Tensors]] = {}
        """Of each model that they have, the frozen experts by their numbers."""
        self._gone: list[int] = []
        """Models that nobody uses any more, and that they still have."""
        self._numbers = count(1)
        self._loading = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for child in self._children:
            child.close()

    @property
    def pids(self) -> list[int]:
        """Of the processes; empty before they are started."""
        return [child.pid for child in self._children]

    def start(self) -> Self:
        """Start the processes, which takes seconds until they answer; return this object."""
        with self._loading:
            self._running()
        return self

    def predictor(self, state: EngineState) -> RemotePredictor:
        """Return a predictor; reads `frozen`, `served` and `values`.

        Raises:
            ConnectionError: a process has ended.
            CorruptState: an array is missing or has another shape.
        """
        with self._loading:
            children = self._running()
            numbers = {id(t): n for shared in self._models.values() for n, t in shared.items()}
            arrays = {f"served/{name}": array for name, array in state.served.items()}
            frozen: dict[int, int] = {}
            for expert, tensors in state.frozen.items():
                if (number := numbers.get(id(tensors))) is None:
                    number = next(self._numbers)
                    arrays |= {f"{number}/{name}": array for name, array in tensors.items()}
                frozen[expert] = number
            model, gone, self._gone = next(self._numbers), self._gone, []
            facts = {"frozen": frozen, "values": state.values, "forget": gone, "model": model}
            answers = [child.ask({"ask": "load", **facts}, arrays) for child in children]
            self._models[model] = {n: state.frozen[expert] for expert, n in frozen.items()}
        made = RemotePredictor(children, model, InputSchema.parse(answers[0].facts["schema"]))
        weakref.finalize(made, self._forget, children, model)
        return made

    def _forget(self, children: list[_Child], model: int) -> None:
        """Note that nobody uses a model any more; the processes hear of it with the next one."""
        if children is self._children and self._models.pop(model, None) is not None:
            self._gone.append(model)

    def _running(self) -> list[_Child]:
        """Return the processes; all started anew, without a model, where one has ended."""
        codes = [child.ended for child in self._children]
        if self._children and all(code is None for code in codes):
            return self._children
        if self._children:
            _log.error("inference_process_ended", exit_codes=codes)
        for child in self._children:
            child.close()
        self._children = [_Child(self._command) for _ in range(self._n)]
        self._models, self._gone = {}, []
        return self._children
