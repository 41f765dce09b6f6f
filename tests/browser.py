"""Headless Chromium, spoken to in the words of the WebDriver standard."""

import base64
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from service.demo.process import free_port
from tests.system_packages import require

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""Under this name the standard hands out elements."""
PATIENCE_S = 20.0


class Browser:
    """One window."""

    def __init__(self, client: httpx.Client, session: str) -> None:
        self._client = client
        self._session = session

    def _do(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:  # noqa: ANN401  as the page answers
        json = body if method == "GET" else body or {}
        answer = self._client.request(method, f"/session/{self._session}{path}", json=json)
        value = answer.json()["value"]
        assert answer.is_success, value
        return value

    def open(self, address: str) -> None:
        """Load a page, to its end."""
        self._do("POST", "/url", {"url": address})

    def run(self, script: str, *arguments: object) -> Any:  # noqa: ANN401  as the script returns
        """Return what the body of a function returns in the page; a promise's value."""
        return self._do("POST", "/execute/sync", {"script": script, "args": arguments})

    def text(self, selector: str) -> str:
        """Return the text of the first element that a selector finds; "" where there is none."""
        found: str = self.run(
            "return document.querySelector(arguments[0])?.textContent ?? ''", selector
        )
        return found

    def type(self, selector: str, text: str) -> None:
        """Type into an element, as a person would."""
        found = self._do("POST", "/element", {"using": "css selector", "value": selector})
        self._do("POST", f"/element/{found[ELEMENT]}/value", {"text": text})

    def click(self, selector: str) -> None:
        """Click an element, as a person would."""
        found = self._do("POST", "/element", {"using": "css selector", "value": selector})
        self._do("POST", f"/element/{found[ELEMENT]}/click")

    def until(self, condition: str, *, limit_s: float = PATIENCE_S) -> float:
        """Wait until an expression holds in the page; return after how many seconds it did."""
        began = time.monotonic()
        while not self.run(f"return Boolean({condition})"):
            waited = time.monotonic() - began
            assert waited < limit_s, f"{condition} does not hold after {waited:.0f} s"
            time.sleep(0.05)
        return time.monotonic() - began

    def media(self, *, dark: bool) -> None:
        """Let the page believe that its reader prefers dark or light."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._devtools("Emulation.setEmulatedMedia", {"features": [feature]})

    def width(self, pixels: int, height: int = 1400) -> None:
        """Give the page a width."""
        size = {"width": pixels, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._devtools("Emulation.setDeviceMetricsOverride", size)

    def picture(self, path: Path) -> None:
        """Write what is to be seen, as PNG."""
        path.write_bytes(base64.b64decode(self._do("GET", "/screenshot")))

    def complaints(self) -> list[str]:
        """Return what the console has said since it was asked last, from warnings on."""
        said = self._do("POST", "/se/log", {"type": "browser"})
        return [one["message"] for one in said if one["level"] in {"WARNING", "SEVERE"}]

    def _devtools(self, command: str, parameters: dict[str, Any]) -> None:
        self._do("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})


@contextmanager
def browser() -> Iterator[Browser]:
    """Open a window for the length of a block."""
    chromium, driver, port = require("chromium"), require("chromedriver"), free_port(0)
    options = {
        "binary": chromium,
        "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
    }
    wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
    with (
        subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        try:
            _until_ready(client)
            asked = {"capabilities": {"alwaysMatch": wanted}}
            session = client.post("/session", json=asked).json()["value"]["sessionId"]
            yield Browser(client, session)
            client.delete(f"/session/{session}")
        finally:
            process.terminate()


def _until_ready(client: httpx.Client) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            client.get("/status").raise_for_status()
        except httpx.HTTPError:
            assert time.monotonic() < deadline, "chromedriver does not start"
            time.sleep(0.05)
        else:
            return
