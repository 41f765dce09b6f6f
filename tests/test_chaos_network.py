"""The network before Redis fails: no 500, /predict goes on, all recovers alone, nothing doubles."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.store.server import bundled_binary
from tests.chaos.checker import Verdict, check
from tests.chaos.clients import Prober, RetryingClient, finish_all, until_up
from tests.chaos.parts import Service, chaos_settings
from tests.chaos.proxy import Mode, Proxy
from tests.chaos.report import say
from tests.chaos.workload import Workload

pytestmark = [pytest.mark.crash, pytest.mark.timeout(180)]

WORKLOAD = Workload()
ANSWERED_S, AGAIN_S = 3.0, 5.0
"""Promised: an answer within, and a 202 after healing within."""
BUSY = 3


@dataclass
class Run:
    """A service behind a bad network, and those who use it."""

    service: Service
    proxy: Proxy
    clients: list[RetryingClient]
    prober: Prober

    def acked(self) -> int:
        return sum(len(client.acked) for client in self.clients)

    def statuses(self) -> Counter[int]:
        return sum((client.statuses for client in self.clients), Counter())

    def until_acked(self, more: int, *, within_s: float = 60.0) -> float:
        """Wait until so many more are acknowledged; return the seconds."""
        started_at, least = time.monotonic(), self.acked() + more
        while self.acked() < least:
            assert time.monotonic() < started_at + within_s, self.statuses()
            assert not any(client.refusals for client in self.clients)
            time.sleep(0.005)
        return time.monotonic() - started_at

    def end(self) -> Verdict:
        """Let all be learned; return what the checker found."""
        finish_all(self.clients, self.service.tend)
        self.service.drain()
        self.prober.finish()
        self.prober.join()
        self.service.stop()
        return check(self.service.settings, WORKLOAD, self.clients)


@contextmanager
def running(home: Path, *, new_key_per_try: bool = False) -> Iterator[Run]:
    """Start a service behind a network that still works, under load."""
    embedded = chaos_settings(home)
    assert embedded.redis_url is not None
    with Proxy(embedded.redis_url) as proxy:
        settings = embedded.model_copy(update={"redis_url": proxy.url})
        with Service(settings, bundled_binary()) as service:
            clients = [
                RetryingClient(n, settings.port, WORKLOAD, new_key_per_try=new_key_per_try)
                for n in range(3)
            ]
            prober = Prober(settings.port, service.api, WORKLOAD)
            until_up(settings.port)
            run = Run(service, proxy, clients, prober)
            for thread in (*clients, prober):
                thread.start()
            run.until_acked(50)
            while not prober.found.answered:
                time.sleep(0.01)
            yield run


@pytest.mark.parametrize(
    ("mode", "lasts_s"),
    [("cut", 3.0), ("silent", 10.0), ("late", 5.0), ("reset", 3.0), ("half", 3.0)],
    ids=["cut", "black-hole", "300-ms-late", "reset", "half-closed"],
)
def test_through_a_bad_network_nothing_is_lost_doubled_or_answered_500(
    tmp_path: Path, mode: Mode, lasts_s: float
) -> None:
    with running(tmp_path) as run:
        run.proxy.become(mode)
        time.sleep(lasts_s)
        run.proxy.become("pass")
        again_s = run.until_acked(1)
        verdict = run.end()

    found = run.prober.found
    slowest_s = max(client.slowest_s for client in run.clients)
    say(f"{mode}: 202 again after {again_s:.2f} s, slowest answer {slowest_s:.2f} s")
    assert set(run.statuses()) <= {202, 503}
    assert found.failures == []
    assert verdict.violations == []
    assert run.service.unexpected == []
    assert slowest_s < BUSY * ANSWERED_S
    assert again_s < BUSY * AGAIN_S


def test_two_hundred_lost_answers_double_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.proxy.lose_every = 3
        while run.proxy.lost["append"] < 200:
            run.until_acked(1)
        run.proxy.lose_every = 0
        verdict = run.end()

    say(f"answers lost: {dict(run.proxy.lost)}; {verdict.acked} acknowledged")
    assert set(run.statuses()) <= {202, 503}
    assert run.statuses()[503] >= 200
    assert verdict.violations == []
    assert run.service.unexpected == []
    assert run.prober.found.failures == []


def test_control_with_a_new_key_for_each_try_lost_answers_double(tmp_path: Path) -> None:
    with running(tmp_path, new_key_per_try=True) as run:
        run.proxy.lose_every = 3
        while run.proxy.lost["append"] < 20:
            run.until_acked(1)
        run.proxy.lose_every = 0
        verdict = run.end()

    assert verdict.doubled >= 20
    assert not verdict.same_state
