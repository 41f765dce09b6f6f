"""The network before Redis fails: no 500, /predict goes on, all recovers alone, nothing doubles."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos.load import Load, load
from tests.chaos.parts import chaos_settings
from tests.chaos.proxy import Mode, Proxy
from tests.chaos.report import say
from tests.chaos.workload import Workload
from tests.patience import BUSY

pytestmark = [pytest.mark.crash, pytest.mark.timeout(180)]

WORKLOAD = Workload()
ANSWERED_S, AGAIN_S = 3.0, 5.0
"""Promised: an answer within, and a 202 after healing within."""


@contextmanager
def behind_a_proxy(home: Path, *, new_key_per_try: bool = False) -> Iterator[tuple[Load, Proxy]]:
    """Start a service behind a network that still works, under load."""
    embedded = chaos_settings(home)
    assert embedded.redis_url is not None
    with Proxy(embedded.redis_url) as proxy:
        settings = embedded.model_copy(update={"redis_url": proxy.url})
        with load(settings, WORKLOAD, new_key_per_try=new_key_per_try) as run:
            yield run, proxy


@pytest.mark.parametrize(
    ("mode", "lasts_s"),
    [("cut", 3.0), ("silent", 10.0), ("late", 5.0), ("reset", 3.0), ("half", 3.0)],
    ids=["cut", "black-hole", "300-ms-late", "reset", "half-closed"],
)
def test_through_a_bad_network_nothing_is_lost_doubled_or_answered_500(
    tmp_path: Path, mode: Mode, lasts_s: float
) -> None:
    with behind_a_proxy(tmp_path) as (run, proxy):
        proxy.become(mode)
        run.go_on(lasts_s)
        proxy.become("pass")
        again_s = run.until_acked(1)
        verdict = run.end()

    found = run.prober.found
    say(f"{mode}: 202 again after {again_s:.2f} s, slowest answer {run.slowest_s:.2f} s")
    assert set(run.statuses()) <= {202, 503}
    assert found.failures == []
    assert verdict.violations == []
    assert run.service.unexpected == []
    assert run.slowest_s < BUSY * ANSWERED_S
    assert again_s < BUSY * AGAIN_S


def test_two_hundred_lost_answers_double_nothing(tmp_path: Path) -> None:
    with behind_a_proxy(tmp_path) as (run, proxy):
        proxy.lose_every = 3
        while proxy.lost["append"] < 200:
            run.until_acked(1)
        proxy.lose_every = 0
        verdict = run.end()

    say(f"answers lost: {dict(proxy.lost)}; {verdict.acked} acknowledged")
    assert set(run.statuses()) <= {202, 503}
    assert run.statuses()[503] >= 200
    assert verdict.violations == []
    assert run.service.unexpected == []
    assert run.prober.found.failures == []


def test_control_with_a_new_key_for_each_try_lost_answers_double(tmp_path: Path) -> None:
    with behind_a_proxy(tmp_path, new_key_per_try=True) as (run, proxy):
        proxy.lose_every = 3
        while proxy.lost["append"] < 20:
            run.until_acked(1)
        proxy.lose_every = 0
        verdict = run.end()

    assert verdict.doubled >= 20
    assert not verdict.same_state
