"""`levit serve` and the Redis it starts: what is started, restarted, and stopped in which order.

The children are small scripts that write down what happens to them; Redis is real.
"""

import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service import supervisor
from service.errors import SettingsError, Unavailable
from service.settings import Settings
from service.store.link import connect
from service.store.server import OPTIONS, EmbeddedServer, bundled_binary, find_binary, server_url
from service.supervisor import Child, Restarts, Supervisor, child_environment

ROOT = Path(__file__).parent.parent

CHILD = """
import os, pathlib, signal, sys, time
name, diary = sys.argv[1], pathlib.Path(os.environ["LEVIT_STATE_DIR"]) / "diary"
def note(text):
    with diary.open("a") as file:
        file.write(f"{name} {text}\\n")
def stop(*_):
    redis = (diary.parent / "redis" / "redis.sock").exists()
    note(f"stops, redis is {'up' if redis else 'down'}")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
note(f"starts {os.getpid()}")
if (diary.parent / f"{name}-exits").exists():
    sys.exit(int((diary.parent / f"{name}-exits").read_text()))
while True:
    time.sleep(0.05)
"""


def eventually(condition: Callable[[], bool], *, within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class Served:
    """A supervisor with scripts for children, run in a thread."""

    def __init__(self, settings: Settings) -> None:
        self.state_dir = settings.state_dir
        self.supervisor = Supervisor(settings)
        self.exit_code: int | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.exit_code = self.supervisor.run()

    def diary(self) -> list[str]:
        path = self.state_dir / "diary"
        return path.read_text().splitlines() if path.exists() else []

    def starts(self, name: str) -> list[int]:
        """The process ids of a child's starts so far."""
        return [int(line.split()[-1]) for line in self.diary() if f"{name} starts" in line]

    def stop(self) -> None:
        self.supervisor.stop()
        self.join()

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, state_dir: Path) -> Iterator[Callable[[], Served]]:
    """A function that starts a supervisor over the bundled server and script children."""
    monkeypatch.setattr(
        supervisor, "child_arguments", lambda name: [sys.executable, "-c", CHILD, name]
    )
    monkeypatch.setattr(supervisor, "SHORTEST_BACK_OFF_S", 0.1)
    monkeypatch.setattr("service.store.server.find_binary", bundled_binary)
    started: list[Served] = []

    def start() -> Served:
        served = Served(Settings(state_dir=state_dir))
        started.append(served)
        return served

    yield start
    for served in started:
        served.stop()


def test_it_starts_redis_then_worker_and_api_and_stops_them_in_reverse(
    serve: Callable[[], Served],
) -> None:
    served = serve()
    assert eventually(lambda: bool(served.starts("worker") and served.starts("api")))

    served.stop()

    assert served.exit_code == 0
    assert served.diary()[-2:] == ["api stops, redis is up", "worker stops, redis is up"]
    assert not EmbeddedServer(Settings(state_dir=served.state_dir)).answers()


@pytest.mark.parametrize("name", ["worker", "api"])
def test_a_killed_child_comes_back(serve: Callable[[], Served], name: str) -> None:
    served = serve()
    assert eventually(lambda: len(served.starts(name)) == 1)

    os.kill(served.starts(name)[0], signal.SIGKILL)

    assert eventually(lambda: len(served.starts(name)) == 2)


def test_a_killed_redis_comes_back_with_what_it_had(serve: Callable[[], Served]) -> None:
    served = serve()
    assert eventually(lambda: bool(served.starts("api")))
    redis = connect(server_url(Settings(state_dir=served.state_dir)))
    redis.set("kept", "yes")
    process = redis.info("server")["process_id"]

    os.kill(process, signal.SIGKILL)

    server = EmbeddedServer(Settings(state_dir=served.state_dir))
    assert eventually(server.answers)
    assert redis.get("kept") == b"yes"
    assert redis.info("server")["process_id"] != process
    redis.close()


def test_wrong_settings_of_a_child_end_everything_with_2(
    serve: Callable[[], Served], state_dir: Path
) -> None:
    (state_dir / "api-exits").write_text("2")

    served = serve()
    served.join()

    assert served.exit_code == 2
    assert not EmbeddedServer(Settings(state_dir=state_dir)).answers()


class Clock:
    """A monotonic clock that stands still unless it is moved."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def starts_of(part_starts: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return when a part that dies at once is started during a minute, in seconds."""
    clock, starts = Clock(), list[float]()
    monkeypatch.setattr(supervisor, "time", clock)

    def start() -> None:
        starts.append(clock.now)
        part_starts()

    part = Restarts("worker", lambda: True, start)
    for tenth in range(600):
        clock.now = tenth / 10
        part.look()
    return starts


def refuse() -> None:
    raise Unavailable("redis_unavailable", "no")


@pytest.mark.parametrize("start", [lambda: None, refuse], ids=["dies", "does not start"])
def test_a_part_that_keeps_failing_is_started_ever_more_slowly(
    monkeypatch: pytest.MonkeyPatch, start: Callable[[], None]
) -> None:
    starts = starts_of(start, monkeypatch)

    waits = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert starts[0] == pytest.approx(0.5, abs=0.2)
    assert waits == pytest.approx([1, 2, 4, 8, 10, 10, 10, 10], abs=0.2)


def test_children_read_the_settings_of_their_parent(
    monkeypatch: pytest.MonkeyPatch, state_dir: Path
) -> None:
    made = Settings(state_dir=state_dir, insecure=True, port=0, input="vector:3", budget=5.0)

    for name, value in child_environment(made).items():
        monkeypatch.setenv(name, value)

    assert Settings.read() == made


def test_threads_of_children_do_not_spin_unless_they_are_told_to(
    monkeypatch: pytest.MonkeyPatch, state_dir: Path
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("KMP_BLOCKTIME", "7")

    environment = child_environment(Settings(state_dir=state_dir))

    assert (environment["OMP_WAIT_POLICY"], environment["KMP_BLOCKTIME"]) == ("PASSIVE", "7")


def test_on_sigterm_serve_stops_everything_and_exits_0(state_dir: Path) -> None:
    code = (
        "import sys; from service import supervisor; from service.settings import Settings;"
        f"supervisor.child_arguments = lambda name: [sys.executable, '-c', {CHILD!r}, name];"
        "sys.exit(supervisor.serve(Settings.read()))"
    )
    environment = child_environment(Settings(state_dir=state_dir, insecure=True, port=0))
    diary = state_dir / "diary"
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, stderr=subprocess.DEVNULL
    ) as process:
        assert eventually(lambda: diary.exists() and diary.read_text().count("starts") == 2)

        process.send_signal(signal.SIGTERM)

        assert process.wait(20) == 0
    assert diary.read_text().count("stops") == 2
    assert not EmbeddedServer(Settings(state_dir=state_dir)).answers()


def test_a_port_that_is_taken_is_named_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, state_dir: Path
) -> None:
    monkeypatch.setattr(supervisor, "PORT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"LEVIT_PORT: expected a free port .* got {port}"):
            supervisor.serve(Settings(state_dir=state_dir, insecure=True, port=port))

    assert list(state_dir.iterdir()) == []


def test_a_child_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    monkeypatch.setattr(supervisor, "STOP_S", 0.3)
    monkeypatch.setattr(supervisor, "child_arguments", lambda _: [sys.executable, "-c", stubborn])
    child = Child("api", dict(os.environ))
    child.start()
    time.sleep(1)

    child.stop()

    assert child.exit_code() == -signal.SIGKILL


# The embedded server


def test_a_server_on_the_path_comes_before_the_bundled_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed = tmp_path / "valkey-server"
    installed.touch(mode=0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binary() == installed

    installed.unlink()

    assert find_binary() == bundled_binary()


def test_without_redis_serve_ends_with_1(monkeypatch: pytest.MonkeyPatch, state_dir: Path) -> None:
    monkeypatch.setattr("service.store.server.find_binary", lambda: Path("/bin/false"))

    assert Supervisor(Settings(state_dir=state_dir)).run() == 1


def test_the_embedded_server_runs_with_the_shipped_options() -> None:
    lines = (ROOT / "deploy" / "redis.conf").read_text().splitlines()
    shipped = dict(line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))

    assert {name: shipped[name].strip('"') for name in OPTIONS} == OPTIONS


def test_a_long_state_directory_gets_a_socket_that_works(tmp_path: Path) -> None:
    state_dir = tmp_path / ("d" * 60) / ("e" * 60)
    state_dir.mkdir(parents=True)
    server = EmbeddedServer(Settings(state_dir=state_dir), bundled_binary())

    server.start()

    assert str(state_dir) not in server.url
    assert server.answers()
    server.stop()
    socket = Path(server.url.removeprefix("unix://"))
    assert socket.parent.stat().st_mode & 0o777 == 0o700
    socket.parent.rmdir()


def test_a_socket_folder_that_somebody_else_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stranger = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: stranger)
    server = EmbeddedServer(Settings(state_dir=tmp_path / ("long" * 30)), bundled_binary())

    with pytest.raises(SettingsError, match=f"expected a folder of user {stranger}, got one of"):
        server.start()


def test_a_server_that_answers_already_is_used_and_left_running(state_dir: Path) -> None:
    settings = Settings(state_dir=state_dir)
    first, second = (EmbeddedServer(settings, bundled_binary()) for _ in range(2))
    first.start()

    second.start()
    second.stop()

    assert first.answers()
    first.stop()
    assert not first.answers()


def test_a_server_that_cannot_start_says_where_to_look(state_dir: Path) -> None:
    server = EmbeddedServer(Settings(state_dir=state_dir), Path("/bin/false"))

    with pytest.raises(Unavailable, match=r"redis\.log"):
        server.start()


@pytest.mark.skipif(sys.platform != "linux", reason="needs the parent-death signal")
def test_a_killed_supervisor_takes_its_server_along(state_dir: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from service.settings import Settings;"
        "from service.store.server import EmbeddedServer, bundled_binary;"
        "server = EmbeddedServer(Settings(), bundled_binary());"
        "server.start(); print('up', flush=True); time.sleep(60)"
    )
    settings = Settings(state_dir=state_dir)
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=child_environment(settings),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        server = EmbeddedServer(settings)
        assert server.answers()

        process.kill()

    assert eventually(lambda: not server.answers())
