"""Redis' own line of defence: what a process may send is what it sends, and nothing else.

Both servers run with the file that deploy/make-secrets.sh writes, passwords included.
"""

import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import redis as redis_py
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

from service.admin import Admin
from service.errors import SettingsError, Unavailable
from service.settings import Settings
from service.store.link import connect, redis_errors
from service.store.names import Names
from service.store.server import bundled_binary, server_url
from tests.chaos.parts import free_port
from tests.served import stored
from tests.system_packages import require

ROOT = Path(__file__).parent.parent
USERS = ("api", "worker", "probe")
CLEAN = np.zeros((2, 8, 8), np.uint8)
REFUSED = np.full((1, 8, 8), 255, np.uint8)
"""A batch that the toy engine refuses to learn."""
NEVER = (
    "EVAL 'return 1' 0",
    "EVALSHA 0000000000000000000000000000000000000000 0",
    "FUNCTION LIST",
    "FCALL f 0",
    "SCRIPT FLUSH",
    "CONFIG SET maxmemory 0",
    "KEYS *",
    "FLUSHALL",
    "FLUSHDB",
    "MODULE LIST",
    "ACL LIST",
    "SHUTDOWN NOSAVE",
    "REPLICAOF NO ONE",
    "DEBUG JMAP",
    "MIGRATE localhost 1 levit:default:log 0 1",
    "SAVE",
    "BGSAVE",
    "BGREWRITEAOF",
    "CLIENT KILL ID 1",
    "MONITOR",
    "SUBSCRIBE levit",
    "DUMP levit:default:log",
    "RESTORE levit:default:log 0 x",
    "RENAME levit:default:log levit:default:lost",
)
"""What no process of ours may send, the fifteen commands of the threat model first."""


@dataclass(frozen=True)
class Guarded:
    """A server that knows the deployed users and one more, who may do everything."""

    socket: Path
    secrets: Path

    def url(self, user: str) -> str:
        return f"unix://{user}@{self.socket}"

    def password_file(self, user: str) -> Path:
        return self.secrets / f"redis_{user}_password"

    def connected(self, user: str) -> redis_py.Redis:
        file = self.password_file(user)
        return connect(server_url(Settings(redis_url=self.url(user), redis_password_file=file)))

    def everything(self) -> str:
        return f"unix://everything:everything@{self.socket}"


def make_secrets(home: Path) -> Path:
    """Do what an operator does before the first start; return the folder."""
    home.mkdir()
    for name in ("make-secrets.sh", "redis-users.acl"):
        shutil.copy(ROOT / "deploy" / name, home)
    subprocess.run([home / "make-secrets.sh"], check=True)
    return home / "secrets"


@pytest.fixture(scope="module", params=["redis", "valkey"])
def guarded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    """The two servers, one after the other."""
    binary = require("redis-server") if request.param == "redis" else bundled_binary()
    home = tmp_path_factory.mktemp(request.param)
    secrets, socket, users = make_secrets(home / "deploy"), home / "redis.sock", home / "users"
    all_rights = "user everything on >everything ~* &* +@all\n"
    users.write_text((secrets / "redis_users").read_text() + all_rights)
    shipped = (ROOT / "deploy/redis.conf").read_text()
    placed = shipped.replace("/run/secrets/redis_users", str(users)).replace("/data", str(home))
    (home / "redis.conf").write_text(placed)
    with subprocess.Popen(
        [binary, home / "redis.conf", "--port", "0", "--unixsocket", socket],
        stdout=subprocess.DEVNULL,
    ) as process:
        while not socket.exists():
            assert process.poll() is None, "the server does not take the file"
            time.sleep(0.01)
        yield Guarded(socket, secrets)
        process.terminate()


@pytest.fixture
def service(guarded: Guarded, tmp_path: Path) -> Iterator[str]:
    """The address of an API process beside a worker, each its own user, with the toy engine."""
    port = free_port()
    common = {
        "LEVIT_STATE_DIR": str(tmp_path / "state"),
        "LEVIT_PORT": str(port),
        "LEVIT_INSECURE": "true",
        "LEVIT_WORKER_METRICS_PORT": "0",
        "PATH": os.environ["PATH"],
    }
    (tmp_path / "state").mkdir()
    started = []
    for user, module in (("worker", ["tests.toy_worker", "0"]), ("api", ["tests.toy_api"])):
        own = {
            "LEVIT_REDIS_URL": guarded.url(user),
            "LEVIT_REDIS_PASSWORD_FILE": str(guarded.password_file(user)),
        }
        started.append(
            subprocess.Popen([sys.executable, "-m", *module], env=common | own, cwd=ROOT)
        )
    yield f"http://127.0.0.1:{port}"
    for process in started:
        process.terminate()
        process.wait(10)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def missing(url: str, admin: Admin) -> int:
    """Return how many entries the worker misses, once it has noticed."""
    until(lambda: not admin.ready())
    told = httpx.get(f"{url}/readyz").text
    return int(re.search(r"--accept-loss (\d+)", told)[1])  # type: ignore[index]


def test_the_service_does_everything_it_does_and_is_refused_nothing(
    guarded: Guarded, service: str
) -> None:
    everything = connect(guarded.everything())
    everything.flushall()
    everything.execute_command("ACL", "LOG", "RESET")

    with Admin(service, retry_s=20) as admin:
        for shade in range(3):
            admin.wait_until_learned(admin.observe(CLEAN + shade, [1, 2]), timeout_s=20)
        assert admin.predict(CLEAN).model_version > 0
        declared = httpx.post(f"{service}/streams", json={"name": "two", "input": "image:8x8x1"})
        with Admin(service, retry_s=20, stream="two") as second:
            second.wait_until_learned(second.observe(CLEAN, [1, 2]), timeout_s=20)
        refused = [admin.observe(REFUSED).batch_id for _ in range(2)]
        until(lambda: len(list(admin.quarantined())) == 2)
        admin.settle(refused[0], "drop")
        admin.settle(refused[1], "retry")
        until(lambda: [one["number"] for one in admin.quarantined()] == [6])
        admin.pin(admin.checkpoints()[0]["seq"], "good")
        admin.roll_back(admin.checkpoints()[-1]["seq"])
        everything.delete(Names("default").log)
        admin.observe(CLEAN + 7, [1, 2])
        admin.resync(missing(service, admin))
        admin.wait_until_learned(admin.observe(CLEAN + 9, [1, 2]), timeout_s=20)
        until(admin.ready)

    assert declared.status_code == httpx.codes.CREATED
    assert everything.execute_command("ACL", "LOG") == []
    users = {str(one["user"]) for one in everything.client_list()}
    assert users == {"api", "worker", "everything"}
    assert all(name.startswith("levit:") for name in stored(guarded.everything()))


def test_a_command_too_few_would_be_noticed(guarded: Guarded) -> None:
    everything = connect(guarded.everything())
    everything.execute_command("ACL", "LOG", "RESET")

    with pytest.raises(Unavailable, match="redis refuses this user"), redis_errors():
        guarded.connected("api").zadd("levit:default:done", {"x": 1})

    assert len(everything.execute_command("ACL", "LOG")) == 1


@pytest.mark.parametrize("command", NEVER, ids=lambda command: str(command).split()[0].lower())
@pytest.mark.parametrize("user", USERS)
def test_no_user_may(guarded: Guarded, user: str, command: str) -> None:
    everything = connect(guarded.everything())

    answer = everything.execute_command("ACL", "DRYRUN", user, *command.split())

    assert b" has no permissions to run the " in answer
    with pytest.raises(ResponseError, match=r"no permissions|DEBUG command not allowed"):
        guarded.connected(user).execute_command(*command.split())


@pytest.mark.parametrize("command", NEVER, ids=lambda command: str(command).split()[0].lower())
def test_control_whom_everything_is_granted_may(guarded: Guarded, command: str) -> None:
    everything = connect(guarded.everything())

    answer = everything.execute_command("ACL", "DRYRUN", "everything", *command.split())

    assert answer == b"OK"


@pytest.mark.parametrize("user", ["api", "probe"])
def test_only_the_worker_may_delete_a_name(guarded: Guarded, user: str) -> None:
    assert guarded.connected("worker").delete("levit:default:nothing") == 0

    for command in ("DEL {}", "UNLINK {}", "XTRIM {} MAXLEN 0", "HDEL {} field"):
        with pytest.raises(NoPermissionError):
            guarded.connected(user).execute_command(*command.format("levit:default:a").split())


@pytest.mark.parametrize("user", USERS)
def test_no_user_may_touch_a_name_that_is_not_ours(guarded: Guarded, user: str) -> None:
    for command in (["GET", "other"], ["SET", "other", "1"], ["XADD", "other", "*", "a", "b"]):
        with pytest.raises(NoPermissionError):
            guarded.connected(user).execute_command(*command)


def test_the_probe_reads_neither_names_nor_values(guarded: Guarded) -> None:
    probe = guarded.connected("probe")

    assert probe.ping()
    assert probe.config_get("appendfsync") == {"appendfsync": "always"}
    for command in (
        ["GET", "levit:default:log"],
        ["SCAN", "0"],
        ["XADD", "levit:x", "*", "a", "b"],
    ):
        with pytest.raises(NoPermissionError):
            probe.execute_command(*command)


@pytest.mark.parametrize("user", ["default", *USERS])
def test_without_its_password_nobody_gets_in(guarded: Guarded, user: str) -> None:
    for url in (f"unix://{guarded.socket}", f"unix://{user}:wrong@{guarded.socket}"):
        with pytest.raises(AuthenticationError):
            connect(url).ping()


def test_a_wrong_password_is_said_to_be_one(guarded: Guarded, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("wrong")
    made = Settings(redis_url=guarded.url("api"), redis_password_file=tmp_path / "password")

    with pytest.raises(Unavailable, match="redis refuses this user"), redis_errors():
        connect(server_url(made)).ping()


def test_the_shipped_file_alone_lets_nobody_in() -> None:
    lines = (ROOT / "deploy/redis-users.acl").read_text().splitlines()
    rights = {line.split()[1]: set(line.split()[2:]) for line in lines}

    assert rights.pop("default") == {"off"}
    assert set(rights) == set(USERS)
    given = {right for one in rights.values() for right in one}
    assert not {right for right in given if right.startswith((">", "#", "+@", "&"))}
    assert not given & {"nopass", "allkeys", "allcommands", "~*"}


def test_secrets_are_drawn_once_and_only_their_owner_reaches_them(tmp_path: Path) -> None:
    secrets = make_secrets(tmp_path / "deploy")
    before = {path.name: path.read_bytes() for path in secrets.iterdir()}
    subprocess.run([tmp_path / "deploy/make-secrets.sh"], check=True)

    after = {path.name: path.read_bytes() for path in secrets.iterdir()}
    passwords = {name: text for name, text in after.items() if name.endswith("_password")}
    assert after == before
    assert set(passwords) == {f"redis_{user}_password" for user in USERS} | {
        "grafana_admin_password"
    }
    assert len(set(passwords.values())) == 4
    assert all(re.fullmatch(rb"[0-9a-f]{64}", text) for text in passwords.values())
    assert not any(text in after["redis_users"] for text in passwords.values())
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://api@redis:6379/0", "redis://api:p%2Fa%40s@redis:6379/0"),
        ("unix://api@/run/redis.sock", "unix://api:p%2Fa%40s@/run/redis.sock"),
    ],
)
def test_the_password_comes_from_its_file(url: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("p/a@s\n")

    made = Settings(redis_url=url, redis_password_file=tmp_path / "password")

    assert server_url(made) == expected
    assert "p/a@s" not in repr(made)


@pytest.mark.parametrize("url", ["redis://redis:6379", "redis://api:other@redis:6379"])
def test_a_password_of_nobody_is_refused(url: str, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret")

    with pytest.raises(SettingsError, match="LEVIT_REDIS_URL: expected a user without a password"):
        server_url(Settings(redis_url=url, redis_password_file=tmp_path / "password"))


def test_a_password_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"LEVIT_REDIS_PASSWORD_FILE: .*absent"):
        server_url(Settings(redis_url="redis://api@redis", redis_password_file=tmp_path / "absent"))
