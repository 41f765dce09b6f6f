"""A service under load that something is done to: who posts, who asks, what they were told."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.settings import Settings
from service.store.server import bundled_binary
from tests.chaos.checker import Verdict, check
from tests.chaos.clients import Prober, RetryingClient, finish_all, until_up
from tests.chaos.parts import TOY_WORKER, Service
from tests.chaos.workload import Workload

CLIENTS = 3


@dataclass
class Load:
    """A running service, its clients and its prober."""

    service: Service
    clients: list[RetryingClient]
    prober: Prober
    workload: Workload

    def acked(self) -> int:
        return sum(len(client.acked) for client in self.clients)

    def statuses(self) -> Counter[int]:
        """Return the answers of /observe so far, by status; 0 is none."""
        return sum((client.statuses for client in self.clients), Counter())

    @property
    def slowest_s(self) -> float:
        """Longest wait for an answer of /observe."""
        return max(client.slowest_s for client in self.clients)

    def go_on(self, seconds: float) -> None:
        """Let time pass, restarting what dies."""
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            self.service.tend()
            time.sleep(0.01)

    def until_acked(self, more: int, *, within_s: float = 60.0) -> float:
        """Wait until so many more are acknowledged; return the seconds."""
        started_at, least = time.monotonic(), self.acked() + more
        while self.acked() < least:
            assert time.monotonic() < started_at + within_s, self.statuses()
            assert not any(client.refusals for client in self.clients)
            self.go_on(0.01)
        return time.monotonic() - started_at

    def until_refused(self, *, within_s: float = 60.0) -> None:
        """Wait until one more request is answered 503."""
        before, deadline = self.statuses()[503], time.monotonic() + within_s
        while self.statuses()[503] == before:
            assert time.monotonic() < deadline, self.statuses()
            self.go_on(0.01)

    def end(self) -> Verdict:
        """Let all be learned, stop everything; return what the checker found."""
        finish_all(self.clients, self.service.tend)
        self.service.drain()
        self.prober.finish()
        self.prober.join()
        self.service.stop()
        return check(self.service.settings, self.workload, self.clients)


@contextmanager
def load(  # noqa: PLR0913  each is named at the call
    settings: Settings,
    workload: Workload,
    *,
    binary: Path | None = None,
    clients: int = CLIENTS,
    new_key_per_try: bool = False,
    redis_at: Settings | None = None,
    worker: Sequence[str] = TOY_WORKER,
) -> Iterator[Load]:
    """Start a service; yield it once it takes batches and answers questions.

    Args:
        settings: of the service.
        workload: what is sent.
        binary: the Redis server; None for the bundled one.
        clients: how many post.
        new_key_per_try: a mistake of theirs, for negative controls.
        redis_at: whose state directory holds Redis; None for that of the service.
        worker: arguments to Python.
    """
    binary = bundled_binary() if binary is None else binary
    with Service(settings, binary, redis_at=redis_at, worker=worker) as service:
        until_up(settings.port)
        posting = [
            RetryingClient(n, settings.port, workload, new_key_per_try=new_key_per_try)
            for n in range(clients)
        ]
        prober = Prober(settings.port, service.api, workload)
        under = Load(service, posting, prober, workload)
        for thread in (*posting, prober):
            thread.start()
        under.until_acked(20)
        while not prober.found.answered:
            under.go_on(0.01)
        yield under
