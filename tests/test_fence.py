"""One writer: a worker with an old epoch changes nothing in Redis."""

from collections.abc import Callable
from typing import Any

import pytest
import redis

from service.errors import CorruptState, StateDirectoryBusy
from service.store.fence import Fence
from service.store.link import connect
from service.store.names import DEFAULT as names
from service.store.read import Log
from service.store.replay import ReplayStore
from tests.log_entries import NO_NEWS, claimed


@pytest.fixture
def server(either_server: str) -> redis.Redis:
    return connect(either_server)


def everything(server: redis.Redis) -> dict[Any, Any]:
    found: Any = server.keys()
    return {name: server.dump(name) for name in found}


def test_every_start_takes_a_higher_epoch(either_server: str) -> None:
    assert [claimed(either_server).epoch for _ in range(3)] == [1, 2, 3]


def test_an_epoch_is_above_all_that_the_state_directory_knows(either_server: str) -> None:
    fence = Fence(either_server)
    fence.claim(41)

    assert fence.epoch == 42
    assert claimed(either_server).epoch == 43


def test_a_superseded_worker_writes_nothing(either_server: str, server: redis.Redis) -> None:
    old = claimed(either_server)
    claimed(either_server)
    before = everything(server)

    writes: list[Callable[[], object]] = [
        lambda: Log(old).tell("9-0", 9, [], NO_NEWS),
        lambda: Log(old).tell_state("learning"),
        lambda: Log(old).identify("other", {}),
        lambda: Log(old).trim("9-0"),
        lambda: ReplayStore(old).delete([(1, 1)]),
    ]
    for write in writes:
        with pytest.raises(StateDirectoryBusy, match="its epoch is 2, this one's 1"):
            write()

    assert everything(server) == before


def test_a_worker_that_is_superseded_in_the_middle_of_a_write_writes_nothing(
    either_server: str, server: redis.Redis
) -> None:
    old = claimed(either_server)

    with pytest.raises(StateDirectoryBusy):
        old.write(lambda pipe: (server.incr(names.epoch), pipe.set("levit:mark", 1)))

    assert server.get("levit:mark") is None


def test_without_the_fence_the_old_worker_would_have_written(
    either_server: str, server: redis.Redis
) -> None:
    old = claimed(either_server)
    claimed(either_server)

    old.redis.hset(names.progress, mapping={"position": "9-0", "consumed": 9})

    assert server.hget(names.progress, "consumed") == b"9"


def test_a_lost_epoch_is_a_lost_log(either_server: str, server: redis.Redis) -> None:
    fence = claimed(either_server)
    server.flushall()

    with pytest.raises(CorruptState, match="lost the epoch"):
        fence.write(lambda pipe: pipe.set("levit:mark", 1))
    assert server.get("levit:mark") is None
