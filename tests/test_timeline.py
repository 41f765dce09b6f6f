"""The time line: bounded, exact, the same after a restart, and told by GET /timeline."""

import math
from collections import Counter

import httpx
import numpy as np
import pytest

from service.engine.levit import LevitEngines
from service.engine.protocol import NO_ANSWER, OTHER, ObserveReport
from service.inputs import InputSchema
from service.settings import Settings
from service.timeline import COUNTS, ENOUGH, MOST_BUCKETS, MOST_CLASSES, WIDE, Timeline
from tests.served import publish, running_api, until_served

CLASSES = 5


def report(tested: list[tuple[int, int]], *, novelty: float | None = None) -> ObserveReport:
    """Return what a learner says of an entry whose labelled samples were answered so."""
    return ObserveReport(
        step=1,
        expert=3,
        labelled=len(tested),
        correct=sum(true == answered for true, answered in tested),
        tested=tested,
        novelty=novelty,
        expanded=False,
        loss={},
        added=[],
    )


def lived(entries: int, *, classes: int = CLASSES) -> tuple[Timeline, list[tuple[int, int]]]:
    """Return a time line of so many entries, and all that was tested."""
    generator, timeline, tested = np.random.default_rng(0), Timeline(), []
    for number in range(entries):
        pairs = generator.integers(0, classes, (3, 2)).tolist()
        tested += pairs
        timeline.add(1000 * number, 4, report(pairs, novelty=float(number)))
    return timeline, tested


@pytest.mark.parametrize("entries", [1, 511, 512, 513, 1024, 1025, 5000])
def test_however_often_buckets_are_joined_nothing_is_lost(entries: int) -> None:
    timeline, tested = lived(entries)

    totals = dict(zip(COUNTS, np.array(timeline.counts).sum(0).tolist(), strict=True))
    right = sum(true == answered for true, answered in tested)
    assert totals["entries"] == entries
    assert totals["samples"] == 4 * entries
    assert (totals["labelled"], totals["correct"]) == (len(tested), right)
    assert len(timeline.counts) <= MOST_BUCKETS
    assert timeline.at_ms[-1] == 1000 * (entries - 1)
    assert max(timeline.novelty) == timeline.novelty[-1] == entries - 1


@pytest.mark.parametrize("entries", [7, 5000])
def test_what_was_answered_is_counted_by_class(entries: int) -> None:
    timeline, tested = lived(entries)

    by_class = timeline.dump()["by_class"].sum(0)
    counted = Counter(map(tuple, tested))
    for true in range(CLASSES):
        row = [counted[true, answered] for answered in range(CLASSES)]
        assert timeline.confusion[true].tolist() == [0, *row]
        assert by_class[true].tolist() == [sum(row), counted[true, true]]


def test_wide_buckets_lie_over_the_others() -> None:
    timeline, _ = lived(3000)

    labelled = np.array(timeline.counts)[:, COUNTS.index("labelled")]
    wide = [labelled[first : first + WIDE].sum() for first in range(0, len(labelled), WIDE)]
    assert timeline.dump()["by_class"][..., 0].sum(1).tolist() == wide


def test_an_entry_that_was_set_aside_is_an_entry_without_samples() -> None:
    timeline = Timeline()
    timeline.add(1000, 4, report([(0, 0)]))
    timeline.add(2000, 4, None)

    assert timeline.counts == [[1, 4, 1, 1, 4], [1, 0, 0, 0, 4]]
    assert math.isnan(timeline.novelty[1])


def test_an_answer_that_is_not_known_counts_as_wrong_and_confuses_no_classes() -> None:
    timeline = Timeline()
    timeline.add(1000, 3, report([(1, 1), (1, OTHER), (1, NO_ANSWER)]))

    assert timeline.by_class[0].tolist() == [[0, 0], [3, 1]]
    assert timeline.confusion[1].tolist() == [1, 0, 1]


def test_a_time_line_comes_back_as_it_was_and_goes_on_alike() -> None:
    timeline, _ = lived(700)
    again = Timeline()

    again.load(timeline.dump())
    for one in (timeline, again):
        one.add(10**6, 2, report([(CLASSES, 0), (0, 0)]))

    for name, array in timeline.dump().items():
        assert np.array_equal(again.dump()[name], array, equal_nan=name == "novelty"), name


def test_a_long_life_with_many_classes_takes_a_quarter_megabyte() -> None:
    timeline, tested = lived(2 * MOST_BUCKETS * WIDE, classes=3 * MOST_CLASSES)

    dumped = timeline.dump()
    assert len(timeline.confusion) == MOST_CLASSES + 1
    assert timeline.confusion.sum() == len(tested)
    assert sum(array.nbytes for array in dumped.values()) <= 2**18


def test_forgetting_is_the_drop_from_the_best_of_before() -> None:
    timeline = Timeline()
    for right in (ENOUGH, 0, ENOUGH // 2):  # class 0; class 1 comes once, class 2 too seldom
        for number in range(WIDE):
            pairs = [(0, 0 if i < right else 1) for i in range(ENOUGH)] if number == 0 else []
            timeline.add(0, 4, report([*pairs, (2, 2)] if number == 0 else pairs))
    timeline.add(0, 4, report([(1, 1)] * ENOUGH))

    assert timeline.forgetting == 0.5


def test_nothing_is_said_of_forgetting_where_no_class_came_back() -> None:
    timeline = Timeline()
    timeline.add(0, 4, report([(0, 0)] * ENOUGH))

    assert timeline.forgetting is None


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_what_a_learner_reports_adds_up_to_what_it_counts(preset: str) -> None:
    settings = Settings.read(preset=preset, capacity=40)
    engine = LevitEngines(threads=1).create(settings, InputSchema.parse("vector:6"))
    generator, timeline = np.random.default_rng(0), Timeline()
    labels_NB = generator.integers(-1, 4, (40, 10))
    x_NBD = 3 * labels_NB[..., None] + generator.normal(size=(40, 10, 6))
    for number, (x, labels) in enumerate(zip(x_NBD.astype(np.float32), labels_NB, strict=True)):
        timeline.add(number, 10, engine.observe((number + 1, 0), x, labels))
    x, labels = x_NBD[0].astype(np.float32), labels_NB[0]
    engine.observe((41, 0), x, np.full(10, -1))
    timeline.add(41, 0, engine.label((42, 0), x, labels, [True, False, *[None] * 8]))

    summary = engine.summary()
    totals = np.array(timeline.counts).sum(0).tolist()
    assert totals[2:4] == [summary.samples_labelled, summary.samples_correct]
    assert np.trace(timeline.confusion[:, 1:]) == summary.samples_correct
    assert timeline.counts[-1][4] == len(summary.experts)
    unknown = int(labels[1] >= 0)
    assert timeline.confusion.sum() == summary.samples_labelled - unknown


# GET /timeline


async def test_before_the_first_model_the_time_line_is_empty(api: httpx.AsyncClient) -> None:
    answer = await api.get("/timeline")

    assert answer.status_code == 200
    assert answer.json()["points"]["at"] == answer.json()["classes"] == []


async def test_the_time_line_of_the_served_model_is_told(api_settings: Settings) -> None:
    timeline, _ = lived(1000)
    publish(api_settings.state_dir, classes=[5, 6, 7, 8, 9], timeline=timeline)
    async with running_api(api_settings) as client:
        await until_served(client)
        told = (await client.get("/timeline")).json()

    points, by_class = told["points"], told["by_class"]
    assert sum(points["entries"]) == 1000
    assert points["at"][-1] == by_class["at"][-1] == 999.0
    assert {len(points[name]) for name in (*COUNTS, "at", "novelty")} == {len(timeline.counts)}
    assert sum(by_class["samples"]) == sum(points["samples"])
    assert told["classes"] == [5, 6, 7, 8, 9]
    assert told["confusion"][0] == [*timeline.confusion[0, 1:].tolist(), 0]
    assert told["forgetting"] == timeline.forgetting


async def test_classes_that_are_not_told_apart_are_called_null(api_settings: Settings) -> None:
    timeline, _ = lived(100, classes=2 * MOST_CLASSES)
    publish(api_settings.state_dir, classes=list(range(2 * MOST_CLASSES)), timeline=timeline)
    async with running_api(api_settings) as client:
        await until_served(client)
        told = (await client.get("/timeline")).json()

    assert told["classes"] == [*range(MOST_CLASSES), None]
    assert len(told["confusion"]) == MOST_CLASSES + 1


async def test_who_has_the_time_line_is_not_sent_it_again(
    serving: httpx.AsyncClient, api_settings: Settings
) -> None:
    first = await serving.get("/timeline")
    known = {"If-None-Match": first.headers["ETag"]}

    again = await serving.get("/timeline", headers=known)
    publish(api_settings.state_dir, classes=["a"])
    await until_served(serving, version=2)
    newer = await serving.get("/timeline", headers=known)

    assert (again.status_code, again.content) == (304, b"")
    assert (newer.status_code, newer.json()["model_version"]) == (200, 2)
