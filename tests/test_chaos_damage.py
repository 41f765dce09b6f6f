"""A damaged log or checkpoint under real processes: noticed, told, and never learned from."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from service.engine.protocol import EntryRefused
from service.settings import Settings
from service.store.entry import decode_payload
from service.store.link import connect
from service.store.names import DEFAULT as names
from service.store.server import bundled_binary
from service.store.submission import Submission
from tests.chaos.parts import Service, chaos_settings, counts, newest_checkpoint
from tests.log_entries import SCHEMA, append_all, batches, digest
from tests.system_packages import require
from tests.test_checkpoints import DAMAGES
from tests.toy_engine import ToyEngines

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120)]

STREAM = batches(60)
LEARNED = 40
"""Entries learned before the damage; the rest arrives while no worker runs."""
NOTICED_S = 30.0
KINDS = ("flip", "truncation", "loss")
"""Of damage to a checkpoint's file."""


def expected(entries: int) -> str:
    """Return the digest of an engine that learned so many entries of STREAM."""
    engine = ToyEngines().create(Settings(), SCHEMA)
    for number, one in enumerate(STREAM[:entries], start=1):
        try:
            engine.observe((number, 0), *decode_payload(one.payload))
        except EntryRefused:
            continue
    return digest(engine.dump())


@contextmanager
def service_with_unread_entries(
    home: Path, binary: Path, *, log_archive: bool = True
) -> Iterator[Service]:
    """Start a service that has learned a part of STREAM; its worker has ended."""
    settings = chaos_settings(home, log_archive=log_archive)
    with Service(settings, binary) as service:
        _append(settings, STREAM[:LEARNED])
        service.drain()
        assert service.worker.stop()[0] == 0
        _append(settings, STREAM[LEARNED:])
        yield service


def _append(settings: Settings, stream: Sequence[Submission]) -> None:
    asyncio.run(append_all(settings, stream))


def problem_of(service: Service) -> str:
    """Return what the worker tells once it has stopped learning."""
    redis: Any = connect(service.redis.url)
    deadline, said = time.monotonic() + NOTICED_S, {}
    while time.monotonic() < deadline:
        said = redis.hgetall(names.worker)
        if said.get(b"state") == b"stopped":
            redis.close()
            return str(said[b"problem"].decode())
        time.sleep(0.05)
    raise TimeoutError(f"the worker noticed nothing: {said}")


def readiness(service: Service, status: int) -> dict[str, Any]:
    """Return what /readyz says once it answers with `status`."""
    deadline = time.monotonic() + NOTICED_S
    while time.monotonic() < deadline:
        answer = httpx.get(f"{service.url}/readyz")
        if answer.status_code == status:
            said: dict[str, Any] = answer.json()
            return said
        time.sleep(0.1)
    raise TimeoutError(f"/readyz never answered {status}")


def trim_unread(redis: Redis) -> int:
    """Keep five entries; return how many are gone."""
    return int(str(redis.xtrim(names.log, maxlen=5, approximate=False)))


def delete_two(redis: Redis) -> int:
    """Delete two unread entries; return how many are gone."""
    found: Any = redis.xrevrange(names.log, count=10)
    return int(str(redis.xdel(names.log, found[2][0], found[7][0])))


def delete_all(redis: Redis) -> int:
    """Delete the log; return how many are gone."""
    gone = int(str(redis.xlen(names.log)))
    redis.delete(names.log)
    return gone


@pytest.fixture(params=["embedded", "debian"])
def binary(request: pytest.FixtureRequest) -> Path:
    """A Redis server: the bundled one, then Debian's."""
    return bundled_binary() if request.param == "embedded" else Path(require("redis-server"))


@pytest.mark.parametrize(
    "harm", [trim_unread, delete_two, delete_all], ids=["MAXLEN", "XDEL", "DEL"]
)
def test_a_log_that_lost_entries_is_told_with_their_number_and_not_learned(
    tmp_path: Path, binary: Path, harm: Callable[[Redis], int]
) -> None:
    with service_with_unread_entries(tmp_path, binary) as service:
        redis = connect(service.redis.url)
        gone = harm(redis)
        redis.close()

        service.worker.start()

        assert f"`levit resync --accept-loss {gone}`" in problem_of(service)
        assert readiness(service, 503)["status"] == "not_ready"
        assert service.worker.stop()[0] == 65
        assert counts(service.redis.url)[1] == LEARNED
    assert digest(newest_checkpoint(service.settings).state) == expected(LEARNED)


def flip_in_append_only_file(home: Path, payload: bytes) -> None:
    """Flip one bit of a payload where it lies on Redis' disk."""
    flipped = payload[:-3] + bytes([payload[-3] ^ 4]) + payload[-2:]
    found = 0
    for path in (home / "redis" / "appendonlydir").iterdir():
        content = path.read_bytes()
        found += content.count(payload)
        path.write_bytes(content.replace(payload, flipped))
    assert found == 1


def test_a_bit_that_flipped_in_the_append_only_file_is_never_trained(
    tmp_path: Path, binary: Path
) -> None:
    harmed = LEARNED + 7  # counted from 0
    with service_with_unread_entries(tmp_path, binary) as service:
        service.redis.kill()
        flip_in_append_only_file(service.settings.state_dir, STREAM[harmed].payload)
        service.redis.start()

        service.worker.start()

        assert "sha256" in problem_of(service)
        assert readiness(service, 503)["status"] == "not_ready"
        assert service.worker.stop()[0] == 65
    checkpoint = newest_checkpoint(service.settings)
    assert checkpoint.progress.consumed <= harmed
    assert digest(checkpoint.state) == expected(checkpoint.progress.consumed)


def test_control_without_the_checksum_the_flipped_bit_is_trained(
    tmp_path: Path,
) -> None:
    harmed = LEARNED + 7
    with service_with_unread_entries(tmp_path, bundled_binary(), log_archive=False) as service:
        service.redis.kill()
        flip_in_append_only_file(service.settings.state_dir, STREAM[harmed].payload)
        service.redis.start()
        service.worker._arguments += ["checksum"]
        service.worker.start()

        service.drain()
        assert service.worker.stop()[0] == 0
    assert digest(newest_checkpoint(service.settings).state) != expected(len(STREAM))


def test_every_damage_to_every_file_of_the_newest_checkpoint_is_survived(tmp_path: Path) -> None:
    settings = chaos_settings(tmp_path, log_archive=False)
    tried = 0
    with Service(settings, bundled_binary()) as service:
        for start in range(0, len(STREAM), 20):
            _append(settings, STREAM[start : start + 20])
            service.drain()
        assert service.worker.stop()[0] == 0
        newest = max((settings.state_dir / "checkpoints").glob("ckpt-*"))
        names_of_files = sorted(path.name for path in newest.iterdir())
        for name in names_of_files:
            for damage in (DAMAGES[kind] for kind in KINDS):
                tried += survives(service, name, damage)
    assert tried == len(names_of_files) * len(KINDS)


def survives(service: Service, name: str, damage: Callable[[Path], object]) -> bool:
    """Damage a file of the newest checkpoint; say whether the worker told it and ends the same."""
    newest = max((service.settings.state_dir / "checkpoints").glob("ckpt-*"))
    if not (newest / name).exists():
        return True  # an expert that only an older one has
    unlink(newest / name)
    damage(newest / name)
    service.worker.start()
    service.worker.says(b'"restored"')
    told = [json.loads(line) for line in service.worker.said().splitlines()]
    noticed = [one for one in told if one["event"] == "checkpoint_damaged"]
    assert newest.name in noticed[0]["path"], name
    service.drain()
    assert service.worker.stop()[0] == 0
    return digest(newest_checkpoint(service.settings).state) == expected(len(STREAM))


def unlink(path: Path) -> None:
    """Make a file one of its own, where checkpoints share it."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def test_damage_that_all_checkpoints_share_stops_the_worker(tmp_path: Path) -> None:
    with service_with_unread_entries(tmp_path, bundled_binary()) as service:
        newest = max((service.settings.state_dir / "checkpoints").glob("ckpt-*"))
        DAMAGES["flip"](newest / "expert-0.safetensors")

        service.worker.start()

        assert "checkpoints can be restored" in problem_of(service)
        assert readiness(service, 503)["status"] == "not_ready"
        assert counts(service.redis.url)[1] == LEARNED
