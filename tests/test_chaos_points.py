"""A worker dies right before each named durable step in turn: the state is as if none had."""

from typing import Any

import pytest

from service.engine.protocol import EntryRefused
from service.settings import Settings
from tests.chaos.points import TOLD, points_of
from tests.chaos.report import say
from tests.conftest import MakeSettings
from tests.log_entries import SCHEMA, append_all, batches, digest, refused_batch
from tests.served import logged
from tests.toy_engine import ToyEngines

pytestmark = [pytest.mark.crash, pytest.mark.timeout(400)]

ENTRIES = 50


def expected(url: str) -> tuple[str, list[int]]:
    """Return what an engine is that is given the log without interruption, and when it grew."""
    engine = ToyEngines().create(Settings(), SCHEMA)
    grew = []
    for one in logged(url):
        try:
            if engine.observe((one.number, 0), one.x, one.labels).expanded:
                grew.append(one.number)
        except EntryRefused:
            continue
    return digest(engine.dump()), grew


def numbers(told: dict[str, Any]) -> list[int]:
    """Return the entries after which an expansion was told."""
    return [one["number"] for one in told["expanded"]]


async def filled(settings: MakeSettings) -> tuple[Settings, tuple[str, list[int]]]:
    """Fill the log; return settings for it, the digest that every worker must end with, and the
    expansions."""
    made = settings(checkpoint_interval_s=0.02, snapshot_interval_s=0.02, log_archive=True)
    stream = batches(ENTRIES, n=3)
    stream[2::8] = [refused_batch()] * len(stream[2::8])
    await append_all(made, stream)
    return made, expected(str(made.redis_url))


async def test_killed_before_each_named_step_it_ends_in_the_same_state_and_has_told_the_same(
    settings: MakeSettings,
) -> None:
    made, (state, grew) = await filled(settings)

    told = points_of(made)

    points = sorted({one["point"] for one in told} - {""})
    say(f"{len(told) - 1} deaths at {len(points)} points:\n" + "\n".join(points))
    for part in ("attempt", "checkpoints", "snapshots", "archive", "redis XTRIM", "redis HSET"):
        assert any(part in point for point in points), part
    assert [one for one in told if one["point"] and not one["died"]] == []
    assert [one for one in told if one["digest"] != state] == []
    assert len(grew) > 1
    assert [one for one in told if numbers(one) != grew] == []


async def test_control_a_worker_that_forgets_its_generator_ends_in_another_state(
    settings: MakeSettings,
) -> None:
    made, (state, _) = await filled(settings)

    undisturbed, *deaths = points_of(made, "generator", "fsync /checkpoints")

    assert undisturbed["digest"] == state
    assert [one["died"] for one in deaths] == [True] * len(deaths)
    assert any(one["digest"] != state for one in deaths)


async def test_control_a_worker_that_does_not_know_what_it_told_tells_expansions_twice(
    settings: MakeSettings,
) -> None:
    made, (_, grew) = await filled(settings)

    _, *deaths = points_of(made, "repeats", TOLD)

    assert [one["died"] for one in deaths] == [True]
    assert all(len(numbers(one)) > len(grew) for one in deaths)
