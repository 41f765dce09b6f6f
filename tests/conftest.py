"""Fixtures of all tests: a clean environment, a state directory, a real Redis."""

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import httpx
import pytest

from service import store
from service.settings import PREFIX, Settings
from service.store.link import connect, connect_async
from service.store.server import EmbeddedServer, bundled_binary
from tests.listening import listening
from tests.served import publish, running_api, until_served
from tests.system_packages import require

DATA = os.environ.get(f"{PREFIX}DATA")
"""Directory of the data sets, for those tests that want real ones."""
for name in [name for name in os.environ if name.startswith(PREFIX)]:
    del os.environ[name]

MakeSettings = Callable[..., Settings]
DEPLOY = Path(__file__).parent.parent / "deploy"
STORE = [
    import_module(f"service.store.{module.name}")
    for module in iter_modules(store.__path__)
    if module.name not in {"link", "server"}  # they are not of one process
]
WITH_USERS: set[str] = set()
"""Addresses of the servers that know the users of deploy/redis-users.acl."""


@pytest.fixture(autouse=True)
def least_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what runs in this process reach Redis as the user that it is given when deployed.

    Where a test fails as "redis refuses this user", the code sends a command that
    deploy/redis-users.acl does not grant: grant it there to the process that sends it, if it must.
    """
    for user, connects in (("worker", connect), ("api", connect_async)):
        for module in STORE:
            if hasattr(module, connects.__name__):
                monkeypatch.setattr(module, connects.__name__, partial(_as_user, user, connects))


def _as_user(user: str, connects: Callable[[str], object], url: str) -> object:
    known = url in WITH_USERS
    return connects(url.replace("unix://", f"unix://{user}:any@") if known else url)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """An empty state directory."""
    path = tmp_path / "state"
    path.mkdir()
    return path


@pytest.fixture(scope="session")
def _embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = Settings(state_dir=tmp_path_factory.mktemp("embedded"))
    server = EmbeddedServer(settings, bundled_binary())
    server.start()
    _add_users(server.url)
    yield server.url
    server.stop()


@pytest.fixture(scope="session")
def _debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Debian's redis-server with the shipped configuration, but for where it listens and writes."""
    home = tmp_path_factory.mktemp("debian")
    shipped = (DEPLOY / "redis.conf").read_text().replace("dir /data", f"dir {home}")
    configuration = home / "redis.conf"
    configuration.write_text(re.sub("^aclfile .*", "", shipped, flags=re.MULTILINE))
    placed = ["--port", "0", "--unixsocket", str(home / "redis.sock")]
    with subprocess.Popen(
        [require("redis-server"), configuration, *placed], stdout=subprocess.DEVNULL
    ) as process:
        url = f"unix://{home}/redis.sock"
        redis = connect(url)
        while not (home / "redis.sock").exists():
            assert process.poll() is None
        redis.ping()
        redis.close()
        _add_users(url)
        yield url
        process.terminate()


@pytest.fixture
def redis_server(_embedded: str) -> Iterator[str]:
    """The address of an empty embedded server."""
    yield from _emptied(_embedded)


@pytest.fixture
def other_server(_debian: str) -> Iterator[str]:
    """The address of an empty server beside `redis_server`."""
    yield from _emptied(_debian)


@pytest.fixture(params=["embedded", "debian"])
def either_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of an empty server: the embedded one, then Debian's."""
    yield from _emptied(request.getfixturevalue(f"_{request.param}"))


@pytest.fixture
def settings(state_dir: Path, redis_server: str) -> MakeSettings:
    """A function that makes settings for this test's directory and server; options win."""

    def make(**options: object) -> Settings:
        fixed = {"state_dir": state_dir, "redis_url": redis_server, "worker_metrics_port": 0}
        return Settings.read(**(fixed | options))

    return make


@pytest.fixture
def api_settings(settings: MakeSettings) -> Settings:
    """Settings of an API whose bounds are quickly reached."""
    return settings(insecure=True, max_batch=16, max_body_bytes=150_000)


@pytest.fixture
def live(settings: MakeSettings) -> Iterator[Settings]:
    """A service on a port of this machine, without a worker."""
    with listening(settings(insecure=True)) as served:
        yield served


@pytest.fixture
def learning(live: Settings) -> Iterator[Settings]:
    """A service on a port of this machine, and a worker process with the toy engine."""
    environment = {
        "LEVIT_STATE_DIR": str(live.state_dir),
        "LEVIT_REDIS_URL": str(live.redis_url),
        "LEVIT_WORKER_METRICS_PORT": "0",
        "PATH": os.environ["PATH"],
    }
    with subprocess.Popen(
        [sys.executable, "-m", "tests.toy_worker", "0"],
        env=environment,
        cwd=Path(__file__).parent.parent,
    ) as process:
        yield live
        process.terminate()


@pytest.fixture
async def api(api_settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """An API in this process that serves no model yet."""
    async with running_api(api_settings) as client:
        yield client


@pytest.fixture
async def serving(api_settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """An API in this process that serves a model."""
    publish(api_settings.state_dir, classes=[5, 6, 7])
    async with running_api(api_settings) as client:
        await until_served(client)
        yield client


def _add_users(url: str) -> None:
    """Give a server the users that it has where the service is deployed, here without passwords."""
    redis = connect(url)
    for line in (DEPLOY / "redis-users.acl").read_text().splitlines()[1:]:
        _, name, _, *rights = line.split()
        redis.execute_command("ACL", "SETUSER", name, "reset", "on", "nopass", *rights)
    redis.close()
    WITH_USERS.add(url)


def _emptied(url: str) -> Iterator[str]:
    redis = connect(url)
    redis.flushall()
    redis.close()
    yield url
