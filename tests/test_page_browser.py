"""The page in a real browser, in front of a real service that learns real digits."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from service.client import Client
from service.demo.data import load_data
from service.demo.process import environment_of, free_port
from service.engine.protocol import ExpertInfo
from service.processes import end
from service.settings import Settings
from service.store.keys import create_key
from service.timeline import Timeline
from tests.browser import Browser, browser
from tests.conftest import MakeSettings
from tests.listening import listening
from tests.patience import BUSY
from tests.served import load_pixel_engines, publish
from tests.test_page import until_answers
from tests.test_timeline import lived

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

AXE = (Path(__file__).parent / "vendor/axe.min.js").read_text(encoding="utf-8")
SOON_S = 2.0
"""Promised, from the event to its place on the page."""
MOST_BYTES = 300_000
EAGER = {
    "false_expansion_probability": 0.5,
    "false_expansion_horizon": 1000,
    "snapshot_interval_s": 0.2,
}
"""Settings with which a few hundred digits make an expert."""
LOADED = """
    const [page] = performance.getEntriesByType("navigation");
    const files = performance.getEntriesByType("resource")
        .filter((one) => one.initiatorType != "fetch");
    const sent = files.reduce((sum, one) => sum + one.transferSize, page.transferSize);
    return [page.loadEventEnd, sent];
"""
SERIOUS = """
    return axe.run().then((found) => found.violations
        .filter((one) => ["serious", "critical"].includes(one.impact))
        .map((one) => `${one.id}: ${one.nodes[0].html}`));
"""


@pytest.fixture(scope="module")
def opened() -> Iterator[Browser]:
    """One browser for all tests."""
    with browser() as one:
        yield one


@pytest.fixture
def window(opened: Browser) -> Browser:
    """The browser, as it is at the start."""
    opened.open("about:blank")
    opened.width(1280)
    opened.media(dark=False)
    opened.complaints()
    return opened


@dataclass
class Served:
    """A `levit serve` of its own, which can be stopped and started again."""

    state_dir: Path
    port: int

    @property
    def address(self) -> str:
        """Where its page is."""
        return f"http://127.0.0.1:{self.port}/"

    @contextmanager
    def running(self) -> Iterator[Client]:
        """Run it for the length of a block."""
        settings = {"port": self.port, "worker_metrics_port": free_port(0), **EAGER}
        command = [sys.executable, "-m", "service", "serve", "--insecure"]
        command += ["--state-dir", str(self.state_dir)]
        path = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
        with (self.state_dir.parent / "log").open("ab") as log:
            process = subprocess.Popen(
                command, env=path | environment_of(settings), stdout=log, stderr=log
            )
        try:
            with Client(self.address) as client:
                deadline = time.monotonic() + 60
                while not client.ready():
                    assert time.monotonic() < deadline, "the service does not start"
                    time.sleep(0.1)
                yield client
        finally:
            end(process, patience_s=30)


@contextmanager
def feeding(address: str) -> Iterator[None]:
    """Let a client send digits, class by class, while the block goes on."""
    data, stop = load_data("digits", Path()), threading.Event()

    def send() -> None:
        with Client(address) as client:
            for first in range(0, len(data.x_train), 10):
                if stop.is_set():
                    return
                client.observe(data.x_train[first : first + 10], data.y_train[first : first + 10])
                time.sleep(0.02)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        stop.set()
        sender.join()


def heard_expansion(address: str, at: list[float]) -> None:
    """Note when the first expansion is told by GET /events."""
    with Client(address) as client:
        for event in client.events("0"):
            if event.kind == "expanded":
                at.append(time.monotonic())
                return


def test_growth_is_seen_as_it_happens_and_survives_a_restart(
    window: Browser, tmp_path: Path
) -> None:
    served, told_at = Served(tmp_path / "state", free_port(0)), list[float]()
    with served.running(), feeding(served.address):
        window.open(served.address)
        listener = threading.Thread(target=heard_expansion, args=(served.address, told_at))
        listener.start()
        window.until("document.querySelectorAll('#experts tr').length > 1", limit_s=90)
        seen_at = time.monotonic()
        listener.join(60)
        window.until("document.querySelector('#news').textContent.includes('was born')")
        window.until("/[1-9] birth/.test(document.querySelector('#novelty').ariaLabel)")
        print(f"seen {seen_at - told_at[0]:+.2f} s after it was told")  # noqa: T201  for who reads -s
        assert seen_at - told_at[0] < BUSY * SOON_S
        assert window.complaints() == []
        experts = int(window.run("return document.querySelectorAll('#experts tr').length"))
        samples = window.run("return document.querySelector('#growth').ariaLabel")
    assert re.search(r"[1-9]\d* samples so far", samples)
    window.until("document.querySelector('#link').textContent == 'reconnecting'")
    with served.running():
        window.until("document.querySelector('#link').textContent == 'live'", limit_s=30)
        window.until(f"document.querySelectorAll('#experts tr').length >= {experts}")
        window.open(served.address)  # and whoever comes now sees the whole past
        window.until("/[1-9] birth/.test(document.querySelector('#novelty').ariaLabel ?? '')")
        window.click("#experts button")  # what an expert knows, and what it makes up
        window.until("document.querySelectorAll('#strips .strip').length == 2")
        window.until(
            "[...document.querySelectorAll('#strips img')].every((one) => one.naturalWidth)"
        )
        window.type("#file", str(picture_of_a_digit(tmp_path)))
        window.until("document.querySelector('#answer canvas')")
        assert "Nearest samples" in window.text("#answer")
    left = [one for one in window.complaints() if "Failed to load resource" not in one]
    assert left == []


def picture_of_a_digit(home: Path) -> Path:
    """Return where a digit lies as an image."""
    path = home / "digit.png"
    Image.fromarray(load_data("digits", Path()).x_test[0]).save(path)
    return path


@pytest.fixture
def hostile(settings: MakeSettings) -> Iterator[Settings]:
    """A service whose classes are called as nobody should call a class."""
    made, (timeline, _) = settings(insecure=True), lived(300)
    names = ["<img src=x onerror='window.hacked=1'>", "<script>window.hacked=1</script>", "c"]
    publish(made.state_dir, classes=[*names, "d", "e"], timeline=timeline)
    with listening(made, load_pixel_engines) as served:
        until_answers(served.port)
        yield served


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_keeps_anybody_from_reading_it(
    window: Browser, hostile: Settings, *, dark: bool, width: int
) -> None:
    window.media(dark=dark)
    window.width(width)
    window.open(f"http://127.0.0.1:{hostile.port}/")
    window.until("document.querySelector('#classes tr') && document.querySelector('#tiles dd')")
    window.type("#vector", " ".join(["7"] * 64))
    window.click("#ask button")
    window.until("document.querySelector('#answer table')")
    assert "null" not in window.text("#answer")
    window.run(AXE)

    assert window.run(SERIOUS) == []
    assert window.run("return document.documentElement.scrollWidth <= innerWidth")


def test_axe_would_notice_a_picture_without_words(window: Browser, hostile: Settings) -> None:
    window.open(f"http://127.0.0.1:{hostile.port}/")
    window.run("document.body.append(document.createElement('img'))")
    window.run(AXE)

    assert any(one.startswith("image-alt") for one in window.run(SERIOUS))


def test_the_name_of_a_class_is_text_whatever_it_says(window: Browser, hostile: Settings) -> None:
    window.open(f"http://127.0.0.1:{hostile.port}/")
    window.until("document.querySelectorAll('#classes tr').length == 5")

    assert window.text("#classes th").startswith("<img")
    assert window.run("return document.querySelector('#classes img, #classes script')") is None
    assert window.run("return window.hacked ?? null") is None
    assert window.complaints() == []


def test_the_page_is_few_bytes_and_quickly_there(window: Browser, hostile: Settings) -> None:
    window.open(f"http://127.0.0.1:{hostile.port}/")
    loaded_ms, sent = window.run(LOADED)

    print(f"{sent} bytes, loaded after {loaded_ms:.0f} ms")  # noqa: T201  for who reads -s
    assert 20_000 < sent < MOST_BYTES


def test_a_key_is_asked_for_and_kept_nowhere(window: Browser, settings: MakeSettings) -> None:
    made = settings()
    publish(made.state_dir, classes=[5, 6, 7])
    _, reads = create_key(made.state_dir, name="reads", scopes=["read", "predict"])
    _, predicts = create_key(made.state_dir, name="predicts", scopes=["predict"])
    with listening(made, load_pixel_engines) as served:
        window.open(f"http://127.0.0.1:{served.port}/")
        window.until("!document.querySelector('#door').hidden")
        assert window.run("return document.querySelector('#seen').hidden")

        window.type("#key", predicts)
        window.click("#door button")
        window.until("document.querySelector('#door-why').textContent.includes('read')")
        window.type("#vector", " ".join(["6"] * 64))
        window.click("#ask button")
        window.until("document.querySelector('#answer table')")
        assert window.run("return document.querySelector('#seen').hidden")

        window.type("#key", reads)
        window.click("#door button")
        window.until("document.querySelector('#link').textContent == 'live'")
        kept = "return JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
        assert window.run(kept) == '[{},{},""]'
        everything = "return location.href + document.documentElement.outerHTML"
        assert reads not in window.run(everything)
        assert window.run("return document.querySelector('#key').value") == ""


def test_64_experts_100_classes_and_a_long_life_are_there_at_once(
    window: Browser, settings: MakeSettings
) -> None:
    timeline, made = long_life(), settings(insecure=True)
    experts = [expert(number) for number in range(64)]
    publish(made.state_dir, classes=list(range(100)), timeline=timeline, experts=experts)
    with listening(made, load_pixel_engines) as served:
        until_answers(served.port)
        began = time.monotonic()
        window.open(f"http://127.0.0.1:{served.port}/")
        window.until("document.querySelectorAll('#experts tr').length == 64")
        window.until("document.querySelectorAll('#classes tr').length == 100")
        window.until("document.querySelector('#growth').ariaLabel.startsWith('Experts')")
        took_s, asked_at = time.monotonic() - began, time.monotonic()
        metrics = httpx.get(f"http://127.0.0.1:{served.port}/metrics").text
        answered_s = time.monotonic() - asked_at

    series = sum(not line.startswith("#") for line in metrics.splitlines())
    print(f"page {took_s:.2f} s; metrics {1000 * answered_s:.0f} ms, {series} series")  # noqa: T201
    assert sum(row[0] for row in timeline.counts) == 1_000_000
    assert series < 1000


def long_life() -> Timeline:
    """Return the time line of a million batches, of a hundred classes."""
    timeline, _ = lived(1000, classes=100)
    dumped = dict(timeline.dump())
    dumped["counts"] = dumped["counts"] * np.array([1000, 1000, 1000, 1000, 1])
    dumped["stretch"] = dumped["stretch"] * 1000
    timeline.load(dumped)
    return timeline


def expert(number: int) -> ExpertInfo:
    """Return what is told of one of many."""
    return ExpertInfo(
        id=number,
        state="frozen" if number < 63 else "active",
        born_step=15_000 * number,
        frozen_step=15_000 * (number + 1) if number < 63 else None,
        novelty=7.5 if number else None,
        cause="inputs" if number else None,
        threshold=7.3 if number else None,
        p_value=0.01 if number else None,
        samples=150_000,
        classes=list(range(100)),
        parameters=500_000,
        bytes=2_000_000,
    )
