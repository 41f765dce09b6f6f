"""Predictors in a process of their own: the same answers, and what happens when it dies."""

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from structlog.testing import capture_logs

from service.api.predictor import Follower
from service.engine.inference import Host
from service.engine.load import load_engines
from service.engine.messages import Connection, Message
from service.engine.protocol import Engines, EngineState, Predictor, Tensors
from service.engine.remote import InferenceProcesses
from service.errors import CorruptState, Unavailable
from service.inputs import InputSchema
from service.settings import Settings
from tests.scraping import wait_for
from tests.served import PIXELS, PixelEngines, PixelPredictor, publish

X = PIXELS.reshape(2, 8, 8, 1)
MODULE = "tests.pixel_inference"
EXPERT = {"weights": np.arange(6, dtype=np.float32)}


def state(classes: list[Any], *, frozen: Mapping[int, Tensors] | None = None) -> EngineState:
    """Return the state of a predictor of `tests.served`."""
    return EngineState(
        frozen=frozen or {},
        served={"weights": np.zeros(2, np.float32)},
        training={},
        members=np.empty((0, 2), np.int64),
        values={"classes": classes},
    )


@pytest.fixture(params=[1, 2])
def processes(request: pytest.FixtureRequest) -> Iterator[InferenceProcesses]:
    with InferenceProcesses(request.param, module=MODULE) as processes:
        yield processes.start()


def kill(processes: InferenceProcesses, model: Predictor) -> None:
    """Kill the last of them, and wait until a model of theirs is lost."""
    assert not model.lost
    os.kill(processes.pids[-1], signal.SIGKILL)
    wait_for(lambda: model.lost)


def test_answers_are_those_of_the_same_predictor_in_this_process(
    processes: InferenceProcesses,
) -> None:
    here, there = PixelPredictor(["a", 7]), processes.predictor(state(["a", 7]))

    same_answers(here, there)
    assert there.schema == here.schema
    assert not there.lost
    np.testing.assert_array_equal(there.draw(5, 2), here.draw(5, 2))


def same_answers(here: Predictor, there: Predictor, x: np.ndarray[Any, Any] = X) -> None:
    """Check that two predictors say the same, bit by bit."""
    ours, theirs = here.predict(x), there.predict(x)
    assert list(theirs.classes) == list(ours.classes)
    for name in ("probabilities", "experts", "novelty"):
        np.testing.assert_array_equal(getattr(theirs, name), getattr(ours, name), strict=True)
    np.testing.assert_array_equal(there.features(x), here.features(x), strict=True)
    why, told = here.explain(x), there.explain(x)
    assert (list(told.ids), [*map(dict, told.parts)]) == (list(why.ids), [*map(dict, why.parts)])
    np.testing.assert_array_equal(told.weights, why.weights, strict=True)
    np.testing.assert_array_equal(told.novelty, why.novelty, strict=True)
    for ours_, theirs_ in zip(why.heat, told.heat, strict=True):
        assert (ours_ is None) == (theirs_ is None)
        if ours_ is not None and theirs_ is not None:
            assert theirs_.kind == ours_.kind
            np.testing.assert_array_equal(theirs_.cells, ours_.cells, strict=True)


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_the_real_process_answers_bit_by_bit_as_this_one(preset: str) -> None:
    """A later model shares a frozen expert with the one before it."""
    engines, schema = load_engines(1), InputSchema.parse("image:8x8x1")
    settings = Settings.read(preset=preset, capacity=40)
    engine = engines.create(settings, schema)
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (10, 8, 8, 1), np.uint8)
    for number in range(6):
        engine.observe((number + 1, 0), x // (1 + number), np.arange(10) % 3)
    engine.expand()
    first = whole(engine.dump())
    engine.observe((7, 0), x, np.arange(10) % 4)
    second = whole(engine.dump())
    second = replace(second, frozen={**second.frozen, **first.frozen})

    with InferenceProcesses(1) as processes:
        models = [processes.predictor(one) for one in (first, second)]

        for one, there in zip((first, second), models, strict=True):
            same_answers(engines.predictor(one), there, x)
            np.testing.assert_array_equal(there.draw(0, 2), engines.predictor(one).draw(0, 2))


def whole(state: EngineState) -> EngineState:
    """Return a state whose arrays stay as they are while the engine learns."""

    def copied(tensors: Tensors) -> dict[str, Any]:
        return {name: array.copy() for name, array in tensors.items()}

    frozen = {expert: copied(tensors) for expert, tensors in state.frozen.items()}
    return replace(state, frozen=frozen, served=copied(state.served), training={})


def test_a_frozen_expert_is_sent_once(
    processes: InferenceProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[set[str]] = []

    def send(self: Connection, facts: Mapping[str, Any], arrays: Tensors) -> None:
        if facts["ask"] == "load":
            sent.append({name for name in arrays if not name.startswith("served/")})
        real(self, facts, arrays)

    real = Connection.send
    monkeypatch.setattr(Connection, "send", send)
    copy = {name: array.copy() for name, array in EXPERT.items()}
    models = [processes.predictor(state([1], frozen={0: EXPERT})) for _ in range(2)]
    models.append(processes.predictor(state([1], frozen={0: EXPERT, 4: copy})))

    n = len(processes.pids)
    assert [len(names) for names in sent] == [1] * n + [0] * n + [1] * n
    assert all(model.predict(X).classes == [1] for model in models)


def test_a_model_that_nobody_uses_is_forgotten() -> None:
    near, far = socket.socketpair()
    host, connection = Host(cast(Engines, PixelEngines())), Connection(near)
    thread = threading.Thread(target=host.serve, args=(Connection(far),))
    thread.start()

    def ask(question: str, arrays: Tensors, **facts: object) -> Message:
        connection.send({"ask": question, **facts}, arrays)
        return connection.receive()

    loaded = {"frozen": {}, "values": {"classes": [3]}}
    ask("load", {}, model=1, forget=[], **loaded)
    assert ask("predict", {"x": X}, model=1).facts == {"classes": [3]}
    ask("load", {}, model=2, forget=[1], **loaded)
    assert "failed" in ask("predict", {"x": X}, model=1).facts
    assert ask("predict", {"x": X}, model=2).facts == {"classes": [3]}
    connection.close()
    thread.join(5)

    assert not thread.is_alive()


def test_the_process_hears_that_nobody_uses_a_model(
    processes: InferenceProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[list[int]] = []

    def send(self: Connection, facts: Mapping[str, Any], arrays: Tensors) -> None:
        forgotten.append(facts["forget"])
        real(self, facts, arrays)

    real = Connection.send
    monkeypatch.setattr(Connection, "send", send)
    kept, gone = processes.predictor(state([1])), processes.predictor(state([2]))
    del gone
    gc.collect()
    newest = processes.predictor(state([3]))

    n = len(processes.pids)
    assert [len(models) for models in forgotten] == [0] * 2 * n + [1] * n
    monkeypatch.undo()
    assert (kept.predict(X).classes, newest.predict(X).classes) == ([1], [3])


def test_what_fails_there_is_told_here_and_harms_no_other(processes: InferenceProcesses) -> None:
    model = processes.predictor(state([1, 2]))

    with pytest.raises(RuntimeError, match=r"in the inference process:[\s\S]*reshape"):
        model.predict(np.empty((0,), np.uint8).reshape(0))
    with pytest.raises(CorruptState, match=r"^an array is missing$"):
        processes.predictor(replace(state([1]), values={"corrupt": True}))

    assert model.predict(X).classes == [1, 2]


def test_a_process_that_died_is_started_again() -> None:
    with InferenceProcesses(1, module=MODULE) as processes:
        lost = processes.predictor(state([1], frozen={0: EXPERT}))
        kill(processes, lost)

        with pytest.raises(Unavailable, match="is started again") as refused:
            lost.predict(X)
        assert (refused.value.code, refused.value.retry_after_s) == ("prediction_failed", 5)
        with capture_logs() as logs:
            found = processes.predictor(state([2], frozen={0: EXPERT}))

        assert [(entry["event"], entry["exit_codes"]) for entry in logs] == [
            ("inference_process_ended", [-signal.SIGKILL])
        ]
        assert found.predict(X).classes == [2]
        assert lost.lost


def test_questions_at_the_same_time_go_to_different_processes(
    processes: InferenceProcesses,
) -> None:
    """The predictors take their time, and tell who they are in place of an expert."""
    n = len(processes.pids)
    model = processes.predictor(replace(state([1]), values={"classes": [1], "slow": True}))

    with ThreadPoolExecutor(n) as pool:
        answers = list(pool.map(model.predict, [X] * n))

    assert {int(answer.experts[0]) for answer in answers} == set(processes.pids)


def test_a_message_that_cannot_be_read_ends_the_process(
    processes: InferenceProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not just the connection by which it came, which would never be answered again."""
    model = processes.predictor(state([1]))
    with monkeypatch.context() as broken:
        broken.setattr(Connection, "send", lambda self, *_: self._socket.sendall(bytes(12)))
        with pytest.raises(Unavailable):
            model.predict(X)

    wait_for(lambda: model.lost)
    with capture_logs():
        assert processes.predictor(state([2])).predict(X).classes == [2]


def test_an_answer_that_was_not_read_is_never_another_ones(
    processes: InferenceProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = processes.predictor(state([1]))

    def receive(_: Connection) -> Message:
        raise MemoryError

    with monkeypatch.context() as broken:
        broken.setattr(Connection, "receive", receive)
        with pytest.raises(MemoryError):
            model.predict(X)

    wait_for(lambda: model.lost)


def test_whoever_follows_serves_again_after_the_process_died(
    processes: InferenceProcesses, tmp_path: Path
) -> None:
    follower = Follower(Settings(state_dir=tmp_path), processes.start)
    publish(tmp_path, classes=["a", "b"])
    follower.follow_once(processes)
    before = follower.current
    assert before is not None
    follower.follow_once(processes)
    assert follower.current is before
    kill(processes, before.predictor)

    with capture_logs():
        follower.follow_once(processes)

    assert follower.current is not before
    assert follower.answer(X).known == ["a", "b"]


def ended(pid: int) -> bool:
    """Say whether a process has ended, even if nobody has asked how."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_it_ends_with_the_process_that_started_it() -> None:
    script = (
        "from service.engine.remote import InferenceProcesses as P\n"
        f"print(P(1, module={MODULE!r}).start().pids[0], flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not ended(pid)
        parent.kill()

    wait_for(lambda: ended(pid))


def test_the_real_process_leaves_signals_to_the_one_that_started_it() -> None:
    with InferenceProcesses(1).start() as processes:
        engine = load_engines(1).create(Settings.read(), InputSchema.parse("vector:3"))
        model = processes.predictor(engine.dump())
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(processes.pids[0], number)

        assert len(model.predict(np.ones((2, 3), np.float32)).experts) == 2
        assert not model.lost
