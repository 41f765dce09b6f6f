"""Why `appendfsync always`: Redis is killed at the moment at which a weaker setting must lose.

With `everysec` Redis answers while the bytes still wait in its own memory for an fsync that is
under way. The killer watches for that moment; with `always` it never comes.
"""

import time
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from service.store.link import connect
from service.store.names import DEFAULT as names
from service.store.server import bundled_binary
from tests.chaos.clients import Acked, RetryingClient
from tests.chaos.parts import Service, chaos_settings
from tests.chaos.report import say
from tests.chaos.workload import Workload
from tests.system_packages import require

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120)]

BIG = Workload(schema="image:64x64x3", fewest=32, most=64)
"""Batches of about half a megabyte, so that an fsync takes long."""
ANSWERS_ARRIVE_S = 0.3


def unwritten(redis: Redis, *, within_s: float) -> bool:
    """Wait for acknowledged bytes that only the server's memory holds; say whether there were."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        said: Any = redis.info("persistence")
        if said["aof_pending_bio_fsync"] and said["aof_buffer_length"]:
            return True
    return False


def kill_redis(service: Service, *, aim_s: float) -> bool:
    """Kill Redis, at its weakest moment if it comes; say whether it came."""
    redis = connect(service.redis.url)
    found = unwritten(redis, within_s=aim_s)
    service.redis.kill()
    redis.close()
    time.sleep(ANSWERS_ARRIVE_S)
    return found


def lost(service: Service, acked: list[Acked]) -> int:
    """Return how many acknowledged batches Redis does not know."""
    redis: Any = connect(service.redis.url)
    pipe = redis.pipeline(transaction=False)
    for one in acked:
        pipe.exists(names.batch(one.batch_id))
    known: list[int] = pipe.execute()
    redis.close()
    return known.count(0)


def acknowledged_and_lost(
    home: Path, binary: Path, appendfsync: str, *, kills: int, aim_s: float
) -> tuple[int, int]:
    """Return how many batches were acknowledged and lost; ends with the first kill that loses."""
    settings = chaos_settings(home, redis_maxmemory_bytes=4 * 2**30)
    options = {"appendfsync": appendfsync}
    with Service(settings, binary, redis_options=options) as service:
        service.parts.pop("worker").kill()  # the log alone is looked at
        clients = [RetryingClient(n, settings.port, BIG) for n in range(4)]
        for client in clients:
            client.start()
        while not all(client.acked for client in clients):
            time.sleep(0.01)
        acked: list[Acked] = []
        for _ in range(kills):
            kill_redis(service, aim_s=aim_s)
            acked = [one for client in clients for one in client.acked]
            service.redis.start()
            if missing := lost(service, acked):
                return len(acked), missing
        return len(acked), 0


@pytest.fixture(params=["embedded", "debian"])
def binary(request: pytest.FixtureRequest) -> Path:
    """A Redis server: the bundled one, then Debian's."""
    return bundled_binary() if request.param == "embedded" else Path(require("redis-server"))


def test_with_always_no_moment_loses_an_acknowledged_batch(tmp_path: Path, binary: Path) -> None:
    acked, missing = acknowledged_and_lost(tmp_path, binary, "always", kills=4, aim_s=1.0)

    say(f"always: {missing} of {acked} acknowledged batches lost")
    assert acked >= 30
    assert missing == 0


def test_control_with_everysec_killing_redis_loses_acknowledged_batches(
    tmp_path: Path, binary: Path
) -> None:
    acked, missing = acknowledged_and_lost(tmp_path, binary, "everysec", kills=20, aim_s=4.0)

    say(f"everysec: {missing} of {acked} acknowledged batches lost")
    assert missing > 0
