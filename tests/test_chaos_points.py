"""A worker dies right before each named durable step in turn: the state is as if none had."""

import pytest

from service.engine.protocol import EntryRefused
from service.settings import Settings
from tests.chaos.points import points_of
from tests.chaos.report import say
from tests.conftest import MakeSettings
from tests.log_entries import SCHEMA, append_all, batches, digest, refused_batch
from tests.served import logged
from tests.toy_engine import ToyEngines

pytestmark = [pytest.mark.crash, pytest.mark.timeout(400)]

ENTRIES = 50


def expected_digest(url: str) -> str:
    """Return the digest of an engine that is given the log without interruption."""
    engine = ToyEngines().create(Settings(), SCHEMA)
    for one in logged(url):
        try:
            engine.observe((one.number, 0), one.x, one.labels)
        except EntryRefused:
            continue
    return digest(engine.dump())


async def filled(settings: MakeSettings) -> tuple[Settings, str]:
    """Fill the log; return settings for it and the digest that every worker must end with."""
    made = settings(checkpoint_interval_s=0.02, snapshot_interval_s=0.02, log_archive=True)
    stream = batches(ENTRIES, n=3)
    stream[2::8] = [refused_batch()] * len(stream[2::8])
    await append_all(made, stream)
    return made, expected_digest(str(made.redis_url))


async def test_killed_before_each_named_step_it_ends_in_the_state_of_an_uninterrupted_run(
    settings: MakeSettings,
) -> None:
    made, expected = await filled(settings)

    told = points_of(made)

    points = sorted({one["point"] for one in told} - {""})
    say(f"{len(told) - 1} deaths at {len(points)} points:\n" + "\n".join(points))
    for part in ("attempt", "checkpoints", "snapshots", "archive", "redis XTRIM", "redis HSET"):
        assert any(part in point for point in points), part
    assert [one for one in told if one["point"] and not one["died"]] == []
    assert [one for one in told if one["digest"] != expected] == []


async def test_control_a_worker_that_forgets_its_generator_ends_in_another_state(
    settings: MakeSettings,
) -> None:
    made, expected = await filled(settings)

    undisturbed, *deaths = points_of(made, "generator", "fsync /checkpoints")

    assert undisturbed["digest"] == expected
    assert [one["died"] for one in deaths] == [True] * len(deaths)
    assert any(one["digest"] != expected for one in deaths)
