"""The page's files, and GET /live: what is sent to whom, and how much of it."""

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.api import pulse
from service.api.audience import MOST_LISTENERS
from service.api.routes_page import page_files
from service.settings import Settings
from tests.listening import listening
from tests.served import PIXELS, load_pixel_engines, publish

ROOT = Path(__file__).parent.parent
STATIC = ROOT / "service/api/static"
MOST_BYTES = 300_000
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture
def settings_served(api_settings: Settings) -> Iterator[Settings]:
    """A service on a port of this machine that serves a model."""
    publish(api_settings.state_dir, classes=[5, 6, 7])
    with listening(api_settings, load_pixel_engines) as served:
        until_answers(served.port)
        yield served


def until_answers(port: int) -> None:
    """Wait until a model is served."""
    while httpx.get(f"http://127.0.0.1:{port}/experts").json()["model_version"] == 0:
        time.sleep(0.05)


async def test_a_browser_gets_the_page_and_others_the_index(api: httpx.AsyncClient) -> None:
    page = await api.get("/", headers=BROWSER)
    index = await api.get("/")

    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert page.text.startswith("<!doctype html>")
    assert index.json()["predict"] == "POST /predict"
    assert page.headers["Vary"] == index.headers["Vary"] == "Accept"


async def test_everything_the_page_names_is_there_and_of_this_host(api: httpx.AsyncClient) -> None:
    page = await api.get("/", headers=BROWSER)
    named = re.findall(r'(?:href|src)="([^"#]+)"', page.text)
    scripts = "".join(one.read_text() for one in STATIC.glob("*.js"))
    named += [f"page/{one}" for one in re.findall(r'from "\./([^"]+)"', scripts)]

    assert len(named) > 6
    for address in set(named) - {"docs"}:
        answer = await api.get(f"/{address}")
        assert answer.status_code == 200, address
        assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "http:" not in page.text + scripts
    assert "https:" not in page.text + scripts


def test_the_page_needs_nothing_that_its_policy_forbids() -> None:
    page = (STATIC / "index.html").read_text()
    scripts = "".join(one.read_text() for one in STATIC.glob("*.js"))

    assert re.findall(r"<script[^>]*>[^<]", page) == re.findall(r"\sstyle=|\son\w+=", page) == []
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|eval\(|localStorage", scripts) == []


def test_the_files_of_the_page_are_few_bytes() -> None:
    sizes = {name: len(answer.body) for name, answer in page_files().items()}

    assert {"index.html", "page.js", "uPlot.iife.min.js"} <= set(sizes)
    assert sum(sizes.values()) < MOST_BYTES / 3


@pytest.mark.parametrize("place", [STATIC / "vendor", ROOT / "tests/vendor"])
def test_what_others_wrote_is_as_they_published_it(place: Path) -> None:
    said = dict(
        line.split()[::-1]
        for line in (place / "README.txt").read_text().splitlines()
        if re.match(r"[0-9a-f]{64} ", line)
    )
    found = {one.name for one in place.iterdir()}

    assert found == {"README.txt", *said, *(n for n in found if n.startswith("LICENSE."))}
    assert len(found) > len(said) + 1
    for name, sha256 in said.items():
        assert hashlib.sha256((place / name).read_bytes()).hexdigest() == sha256


async def test_a_browser_that_has_a_file_is_not_sent_it_again(api: httpx.AsyncClient) -> None:
    first = await api.get("/page/page.js")
    again = await api.get("/page/page.js", headers={"If-None-Match": first.headers["ETag"]})

    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["nothing.js", "..%2Froutes_page.py", "vendor", "__init__.py"])
async def test_no_other_file_is_served(api: httpx.AsyncClient, name: str) -> None:
    answer = await api.get(f"/page/{name}")

    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"


# GET /live


def heard(lines: list[str]) -> list[dict[str, object]]:
    return [json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:")]


async def listened(port: int, messages: int) -> list[dict[str, object]]:
    """Return the first messages of GET /live."""
    lines: list[str] = []
    async with (
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client,
        client.stream("GET", "/live") as answer,
    ):
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            lines.append(line)
            if len(heard(lines)) == messages:
                break
    return heard(lines)


async def test_what_is_now_is_told_once_a_second(settings_served: Settings) -> None:
    first, second = await listened(settings_served.port, 2)

    assert first["model_version"] == 1
    assert (first["worker"], first["backlog"], first["answered_by"]) == ("learning", 0, {})
    assert second["position"] == "7-0"


async def test_it_says_who_answered(settings_served: Settings) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings_served.port}") as client:
        answer = await client.post("/predict", json={"x": PIXELS.tolist()})
        assert answer.status_code == 200

    (now,) = await listened(settings_served.port, 1)

    assert now["answered_by"] == {"3": 1.0}


async def test_many_listeners_cost_one_look_a_second(
    settings_served: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    look = pulse.Pulse._look

    async def counted(self: pulse.Pulse) -> object:
        nonlocal looks
        looks += 1
        return await look(self)

    monkeypatch.setattr(pulse.Pulse, "_look", counted)

    await asyncio.gather(*(listened(settings_served.port, 3) for _ in range(8)))

    assert 1 <= looks <= 5


async def test_listeners_beyond_the_bound_are_refused(settings_served: Settings) -> None:
    base = f"http://127.0.0.1:{settings_served.port}"
    async with httpx.AsyncClient(base_url=base, timeout=20) as client:
        requests = [client.build_request("GET", "/live") for _ in range(MOST_LISTENERS + 1)]
        answers = [await client.send(one, stream=True) for one in requests]
        statuses = [answer.status_code for answer in answers]
        for answer in answers:
            await answer.aclose()

    assert statuses == [200] * MOST_LISTENERS + [429]
