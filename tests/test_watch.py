"""`levit watch`: the picture, and what it is made of while the service comes and goes."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner

from service import cli, watch
from service.client import ApiError, AsyncClient, Event
from service.settings import Settings
from service.watch import Seen, picture
from tests.scripted import answering, lost, refused

EXPERT = {"id": 0, "state": "frozen", "born_step": 0, "cause": None, "novelty": None}
EXPERT |= {"samples": 400, "classes": [0, 1]}
MODEL = {
    "model_version": 7,
    "samples_learned": 60_000,
    "published_at": 100.0,
    "prequential_accuracy": 0.9381,
    "expansions": 1,
    "classes": [0, 1],
    "experts": [
        EXPERT,
        EXPERT | {"id": 1, "state": "active", "born_step": 120, "cause": "inputs", "novelty": 8.25},
    ],
}
BACKLOG = """# TYPE levit_stream_backlog gauge
levit_stream_backlog{stream="default"} 3.0
levit_stream_backlog{stream="cams"} 1200.0
# TYPE levit_novelty gauge
levit_novelty 2.5
# TYPE levit_loss_nats gauge
levit_loss_nats{term="cross_entropy"} 0.25
"""


def told(seen: Seen, *, now: float = 101.5, width: int = 80) -> str:
    """Return the picture as a terminal of that width shows it."""
    console = Console(width=width, force_terminal=False)
    with console.capture() as shown:
        console.print(picture(seen, now))
    return shown.get()


def seen_at(*times: float) -> Seen:
    seen = Seen("http://levit", "default")
    for number, now in enumerate(times):
        model = MODEL | {"model_version": 7 + number, "samples_learned": 60_000 + 500 * number}
        gauges = {"levit_stream_backlog": 1200.0, "levit_staleness_seconds": 0.25}
        seen.renew(model, gauges, now)
    return seen


# The picture


def test_the_picture_tells_what_is_known() -> None:
    seen = seen_at(100, 101)
    seen.events.append(Event(id="1", kind="expansion", data={"expert": 1, "p_value": 0.001}))

    lines = [" ".join(line.split()) for line in told(seen).splitlines()]

    assert lines == [
        "http://levit stream default answers",
        "model 8 learned 60,500 samples rate 500/s",
        "backlog 1,200 entries staleness 0.2 s expansions 1",
        "accuracy 93.8% ▁▁ model's age 2 s",
        "experts 2; classes 2",
        "id born at cause novelty samples classes",
        "0 step 0 - - 400 0 1",
        "1 step 120 inputs 8.25 400 0 1",
        "events",
        "expansion expert=1 p_value=0.001",
    ]


def test_nothing_learned_yet_is_a_picture_too() -> None:
    seen = Seen("http://levit", "default")
    seen.renew({"model_version": 0, "samples_learned": 0, "experts": []}, {}, 100)

    assert re.search(r"model -\s+learned 0 samples", told(seen))


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    seen = seen_at(100)
    many = EXPERT | {"classes": [f"class of a long name {n}" for n in range(50)]}
    seen.renew(MODEL | {"experts": [many] * 30}, {}, 101)
    seen.events.append(Event(id="1", kind="quarantine", data={"reason": "x" * 500}))
    seen.lose(ApiError(0, "unreachable", "no answer " * 50), 101)

    lines = told(seen, width=width).splitlines()

    assert max(map(len, lines)) <= width
    assert len(lines) < 24
    assert "experts 30, the newest 12" in "\n".join(lines)


def test_what_strangers_wrote_cannot_move_the_cursor() -> None:
    seen = seen_at(100)
    seen.renew(MODEL | {"experts": [EXPERT | {"classes": ["\x1b[2J", "[/red]"]}]}, {}, 101)
    seen.events.append(Event(id="1", kind="quarantine", data={"reason": "\x1b]0;x\x07[/b]"}))

    shown = told(seen)

    assert not {"\x1b", "\x07"} & set(shown)
    assert r"\x1b[2J [/red]" in shown


def test_a_service_that_is_away_leaves_the_last_picture_standing() -> None:
    seen = seen_at(100)

    seen.lose(ApiError(0, "unreachable", "no answer from http://levit"), 110)
    seen.lose(ApiError(0, "unreachable", "no answer from http://levit"), 130)
    away = told(seen, now=131)
    seen.renew(MODEL, {}, 132)

    assert "away for 21 s: no answer from http://levit" in away
    assert "learned 60,000 samples" in away
    assert "away" not in told(seen, now=133)


def test_a_worker_that_has_stopped_is_said() -> None:
    seen = seen_at(100)
    seen.renew(MODEL, {"levit_worker_stopped": 1.0}, 101)

    assert "the worker has stopped" in told(seen)


def test_the_rate_forgets_what_was_long_ago() -> None:
    assert seen_at(0, 1, 2).rate == 500
    assert seen_at(0, 100, 102).rate == 250
    assert seen_at(0).rate is None


# How it becomes known


class Service:
    """Answers by path; what is a list is answered in turn."""

    def __init__(self, **answers: list[Callable[[], httpx.Response]]) -> None:
        self.answers = answers

    def __call__(self, request: httpx.Request) -> httpx.Response:
        script = self.answers[request.url.path.rsplit("/", 1)[-1]]
        return (script.pop(0) if len(script) > 1 else script[0])()


def text(content: str) -> Callable[[], httpx.Response]:
    return lambda: httpx.Response(200, text=content)


def asking(service: Service, **options: Any) -> AsyncClient:  # noqa: ANN401  as AsyncClient takes them
    return AsyncClient("http://levit", transport=httpx.MockTransport(service), **options)


@pytest.mark.parametrize(("stream", "backlog"), [("default", 3), ("cams", 1200)])
async def test_metrics_are_those_of_the_stream(stream: str, backlog: int) -> None:
    seen = Seen("http://levit", stream)
    service = Service(experts=[answering(MODEL)], metrics=[text(BACKLOG)])

    async with asking(service) as client:
        await watch._look(client, seen)

    assert seen.gauges == {"levit_stream_backlog": backlog, "levit_novelty": 2.5}


async def test_a_key_that_may_not_see_the_metrics_sees_the_rest() -> None:
    seen = Seen("http://levit", "default")
    service = Service(experts=[answering(MODEL)], metrics=[refused(403)])

    async with asking(service) as client:
        await watch._look(client, seen)

    assert seen.model == MODEL
    assert re.search(r"backlog -\s", told(seen))


async def test_it_goes_on_when_the_service_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, pictures = Seen("http://levit", "default"), []
    later = answering(MODEL | {"model_version": 8})
    experts = [answering(MODEL), lost, refused(503), later]
    service = Service(experts=experts, metrics=[text(BACKLOG)])

    def note(seen: Seen, now: float) -> str:
        pictures.append((seen.model["model_version"], seen.away_since is not None))
        return ""

    monkeypatch.setattr(watch, "EVERY_S", 0.01)
    monkeypatch.setattr(watch, "picture", note)
    async with asking(service, retry_s=0) as client:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(watch._keep_showing(client, seen), 0.5)

    assert pictures[:4] == [(7, False), (7, True), (7, True), (8, False)]


async def test_a_key_that_may_see_nothing_ends_it() -> None:
    service = Service(experts=[refused(403)])

    async with asking(service, retry_s=0) as client:
        with pytest.raises(ApiError):
            await watch._keep_showing(client, Seen("http://levit", "default"))


async def test_where_there_are_no_events_it_says_why() -> None:
    seen = Seen("http://levit", "default")

    async with asking(Service(events=[refused(403)])) as client:
        await watch._follow(client, seen)

    assert seen.events[0].kind == "no events"


def test_one_picture_of_a_running_service_fits_80_columns(
    live: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    url = f"http://127.0.0.1:{live.port}"

    done = CliRunner().invoke(cli.app, ["watch", "--once", "--url", url])

    assert done.exit_code == 0, done.output
    assert "learned 0 samples" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_one_picture_of_nothing_is_an_error() -> None:
    done = CliRunner().invoke(cli.app, ["watch", "--once", "--url", "http://127.0.0.1:9"])

    assert isinstance(done.exception, ApiError)
    assert done.exception.code == "unreachable"
