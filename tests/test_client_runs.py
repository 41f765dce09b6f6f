"""`observe_all`: many samples under keys of their own, stopped anywhere and begun again."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from service.client import ApiError, AsyncClient, Client, Sent
from service.engine.protocol import Array
from service.settings import Settings
from tests.scripted import Script, accepted, lost, refused, scripted
from tests.served import logged

N = 3_000
X = np.arange(N * 3, dtype=np.float32).reshape(N, 3)
Y = np.arange(N) % 7
CHILD = """
import sys, time
import numpy as np
from service.client import Client
arrays = np.load(sys.argv[2], allow_pickle=False)
with Client(sys.argv[1]) as client:
    client.observe_all(
        arrays["x"], arrays["y"], batch_size=5, run=sys.argv[3] or None,
        progress=lambda sent: print(sent.batches, flush=True),
    )
"""


@pytest.fixture
def client(live: Settings) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{live.port}", retry_s=10) as client:
        yield client


def in_the_log(url: str) -> tuple[Array, list[int]]:
    """Return all samples of the log and their labels, in its order."""
    entries = logged(url)
    labels = [label for entry in entries for label in np.asarray(entry.labels).tolist()]
    return np.concatenate([entry.x for entry in entries]), labels


def test_all_samples_arrive_in_their_order(client: Client, redis_server: str) -> None:
    heard: list[Sent] = []

    sent = client.observe_all(X[:25], Y[:25], batch_size=10, progress=heard.append)

    x, y = in_the_log(redis_server)
    np.testing.assert_array_equal(x, X[:25])
    assert y == Y[:25].tolist()
    assert [one.samples for one in heard] == [10, 20, 25]
    assert (sent.batches, sent.total, sent.replayed, sent.receipt.n) == (3, 25, 0, 5)


def test_what_is_sent_again_is_taken_once(client: Client, redis_server: str) -> None:
    client.observe_all(X[:25], Y[:25], batch_size=10)

    again = client.observe_all(X[:25], Y[:25], batch_size=10)

    assert (again.samples, again.replayed) == (25, 25)
    assert len(logged(redis_server)) == 3


def test_a_run_of_another_name_is_taken_again(client: Client, redis_server: str) -> None:
    client.observe_all(X[:25], batch_size=10)

    again = client.observe_all(X[:25], batch_size=10, run="second time")

    assert (again.run, again.replayed) == ("second time", 0)
    assert len(logged(redis_server)) == 6


@pytest.mark.parametrize(
    ("x", "y", "batch_size"), [(X[5:30], Y[:25], 10), (X[:25], Y[1:26], 10), (X[:25], Y[:25], 5)]
)
def test_a_run_of_one_name_cannot_go_on_with_other_batches(
    client: Client, x: Array, y: Array, batch_size: int
) -> None:
    client.observe_all(X[:25], Y[:25], batch_size=10, run="monday")

    with pytest.raises(ApiError, match=r"batch 0 of run monday: .* choose another name") as reused:
        client.observe_all(x, y, batch_size=batch_size, run="monday")

    assert reused.value.code == "idempotency_key_reused"


@pytest.mark.parametrize("change", ["samples", "labels", "batch size"])
def test_without_a_name_other_batches_are_another_run(change: str) -> None:
    def run(x: Array, y: Array, batch_size: int) -> str:
        with scripted(Script(*[accepted] * 20)) as client:
            return client.observe_all(x, y, batch_size=batch_size).run

    other = {"samples": (X[1:21], Y[:20], 10), "labels": (X[:20], Y[1:21], 10)}
    assert run(X[:20], Y[:20], 10) == run(X[:20].copy(), Y[:20].copy(), 10)
    assert run(X[:20], Y[:20], 10) != run(*other.get(change, (X[:20], Y[:20], 5)))


def test_a_run_goes_on_with_its_first_batch_to_be_sent() -> None:
    whole, rest = Script(*[accepted] * 3), Script(*[accepted] * 2)

    with scripted(whole) as client:
        client.observe_all(X[:30], batch_size=10, run="run")
    with scripted(rest) as client:
        sent = client.observe_all(X[:30], batch_size=10, run="run", first_batch=1)

    assert rest.keys == whole.keys[1:]
    assert (sent.batches, sent.samples) == (3, 30)


def test_a_batch_that_is_tried_again_keeps_its_key() -> None:
    script = Script(accepted, lost, refused(503), accepted)

    with scripted(script) as client:
        client.observe_all(X[:20], batch_size=10)

    assert script.keys[1] == script.keys[2] == script.keys[3] != script.keys[0]


def test_a_refusal_names_the_batch(client: Client, redis_server: str) -> None:
    x = X[:30].copy()
    x[17, 0] = np.nan

    with pytest.raises(ApiError, match=r"batch 1 of run \w+: .* got nan at sample 7") as refused:
        client.observe_all(x, batch_size=10)

    assert (refused.value.status, refused.value.code) == (422, "not_finite")
    assert len(logged(redis_server)) == 1


@pytest.mark.parametrize(
    ("x", "labels", "batch_size", "first_batch"),
    [(X[:0], None, 10, 0), (X[:9], Y[:8], 10, 0), (X[:9], None, 0, 0), (X[:9], None, 5, 2)],
    ids=["no samples", "a label too few", "batches of none", "a batch that is not there"],
)
def test_a_run_that_cannot_be_sent_sends_nothing(
    x: Array, labels: Array | None, batch_size: int, first_batch: int
) -> None:
    with scripted(Script()) as client, pytest.raises(ValueError, match="expected"):
        client.observe_all(x, labels, batch_size=batch_size, first_batch=first_batch)


async def test_the_asynchronous_client_sends_the_same_run(live: Settings) -> None:
    url = f"http://127.0.0.1:{live.port}"
    async with AsyncClient(url) as client:
        first = await client.observe_all(X[:25], Y[:25], batch_size=10)
    with Client(url) as sync:
        second = sync.observe_all(X[:25], Y[:25], batch_size=10)

    assert (first.run, first.replayed) == (second.run, 0)
    assert second.replayed == 25


# Killed in the middle


def killed_and_begun_again(live: Settings, file: Path, *, kills: int, runs: Iterator[str]) -> None:
    """Send the file with one call in a process of its own, which is killed so many times."""
    np.savez(file, x=X, y=Y)
    for kill in range(kills + 1):
        url = f"http://127.0.0.1:{live.port}"
        arguments = [sys.executable, "-c", CHILD, url, str(file), next(runs)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            last = (kill + 1) * N // 5 // (kills + 1)
            for line in child.stdout:
                if int(line) == last and kill < kills:
                    child.kill()
        assert child.returncode == (-9 if kill < kills else 0)


@pytest.mark.crash
@pytest.mark.timeout(120)
def test_a_run_that_is_killed_and_begun_again_loses_and_doubles_nothing(
    live: Settings, redis_server: str, tmp_path: Path
) -> None:
    killed_and_begun_again(live, tmp_path / "data.npz", kills=3, runs=iter([""] * 4))

    x, y = in_the_log(redis_server)
    np.testing.assert_array_equal(x, X)
    assert y == Y.tolist()


@pytest.mark.crash
@pytest.mark.timeout(120)
def test_control_under_new_keys_each_time_samples_are_doubled(
    live: Settings, redis_server: str, tmp_path: Path
) -> None:
    killed_and_begun_again(live, tmp_path / "data.npz", kills=1, runs=iter(["first", "second"]))

    assert len(in_the_log(redis_server)[0]) > N
