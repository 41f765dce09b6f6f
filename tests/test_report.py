"""The report: one page of a stream's life, that says what is missing and no label can take over."""

import base64
import time
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from service import cli
from service.client import ApiError, AsyncClient, Event
from service.errors import Misused
from service.report.gathered import EACH, Gathered, gather
from service.report.page import page
from service.report.picture import TALLEST, WIDTH, draw
from service.settings import Settings
from service.store.keys import create_key
from tests.browser import browser as opened_browser

HOSTILE = "</title></style><img src=x onerror=alert(1)>"
AXE = (Path(__file__).parent / "vendor/axe.min.js").read_text(encoding="utf-8")
SERIOUS = """
    return axe.run().then((found) => found.violations
        .filter((one) => ["serious", "critical"].includes(one.impact))
        .map((one) => `${one.id}: ${one.nodes[0].html}`));
"""
X = np.stack([np.zeros((8, 8), np.uint8), np.full((8, 8), 200, np.uint8)] * 10)
PNG = base64.b64encode(b"\x89PNG").decode()


def levit(*arguments: str) -> Result:
    """Run `levit` in this process."""
    return CliRunner().invoke(cli.app, arguments)


class Markup(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    @property
    def foreign(self) -> list[str]:
        """Elements and attributes that run something or load something."""
        return [
            f"{tag} {attributes}"
            for tag, attributes in self.tags
            if tag in {"script", "link", "iframe", "object", "embed", "base", "form", "a"}
            or any(name.startswith("on") or name.endswith("href") for name in attributes)
            or not (attributes.get("src") or "data:image/png;base64,").startswith("data:image/png;")
        ]


def expert(id_: int, **facts: object) -> dict[str, Any]:
    """Return an expert as GET /experts tells it."""
    told = {"id": id_, "state": "active", "born_step": id_, "cause": "inputs" if id_ else None}
    numbers = {"novelty": 8.0, "threshold": 7.3, "samples": 100, "classes": ["cat"]}
    return {**told, **numbers, **facts}


def model(experts: int = 2, classes: tuple[object, ...] = ("cat", "dog")) -> dict[str, Any]:
    """Return a model as GET /experts tells it."""
    return {
        "model_version": 3,
        "published_at": 1.8e9,
        "step": 30,
        "samples_learned": 300,
        "samples_labelled": 300,
        "samples_correct": 150,
        "prequential_accuracy": 0.5,
        "prequential_by_class": [0.5] * len(classes),
        "classes": list(classes),
        "experts": [expert(one) for one in range(experts)],
        "expansions": experts - 1,
        "expansions_refused": {"max_experts": 0},
        "parameters": 1000,
        "state_bytes": 4000,
        "sample_gradients": 900.0,
    }


def timeline(
    right: list[list[int]], *, classes: tuple[object, ...] = ("cat", "dog")
) -> dict[str, Any]:
    """Return a time line of stretches in which 20 samples come of each class that is asked for.

    Args:
        right: [Q, K] answered right of 20; -1 where none came.
        classes: [K]
    """
    asked = [[20 if one >= 0 else 0 for one in row] for row in right]
    correct = [[max(one, 0) for one in row] for row in right]
    samples, at = [sum(row) for row in asked], [1.8e9 + 10 * q for q in range(len(right))]
    known = range(len(classes))
    totals = [(sum(row[k] for row in asked), sum(row[k] for row in correct)) for k in known]
    return {
        "classes": list(classes),
        "threshold": 7.3,
        "points": {
            "at": at,
            "samples": samples,
            "labelled": samples,
            "correct": [sum(row) for row in correct],
            "experts": [1] + [2] * (len(right) - 1),
            "novelty": [None] + [8.0] * (len(right) - 1),
        },
        "by_class": {"at": at, "samples": samples, "labelled": asked, "correct": correct},
        "confusion": [
            [*({k: good, (k + 1) % len(known): n - good}.get(c, 0) for c in known), 0]
            for k, (n, good) in enumerate(totals)
        ],
        "forgetting": 0.25,
    }


def report(right: list[list[int]]) -> str:
    """Return the page of a stream."""
    return page(Gathered(model=model(), timeline=timeline(right)), stream="default")


LIFE = [[20, -1], [10, 20], [-1, 15], [5, 20]]
"""Cats are gone for a stretch, and are answered worse when they are back."""


# What it shows


def test_each_chart_has_a_name_and_says_what_its_axes_are() -> None:
    shown = report(LIFE)

    charts = [told for tag, told in Markup(shown).tags if tag == "svg"]
    assert len(charts) == 6  # experts, novelty, accuracy, classes over time, hardest, confusion
    assert all(told["role"] == "img" and told["aria-label"] for told in charts)
    for axis in ("experts", "novelty, log10 of evidence", "accuracy, %", "class"):
        assert f">{axis}</text>" in shown
    assert shown.count(">samples since the start</text>") == 4
    assert ">answered class</text>" in shown
    assert ">true class</text>" in shown


def test_a_birth_stands_where_the_number_of_experts_rose() -> None:
    shown = report(LIFE)

    assert shown.count("<title>expert 1, after 60 samples</title>") == 2
    assert "<td>after 60 samples, 2027-01-15 08:00:10 UTC</td>" in shown


def test_the_accuracy_of_the_curve_fades() -> None:
    right, asked, later = [20, 30, 15, 25], [20, 40, 20, 40], [100, 60, 40, 0]
    weights = np.exp(-np.array(later) / 1000)

    expected = 100 * np.dot(right, weights) / np.dot(asked, weights)

    assert f"Of late {expected:.1f} % of the answers were right" in report(LIFE)


def test_a_class_that_came_back_worse_was_forgotten() -> None:
    shown = report(LIFE)

    assert "Forgetting: classes are answered 25.0 points worse than at their best" in shown
    cells = ("cat", "100.0 %", "20", "25.0 %", "120", "+75.0")
    assert "".join(f"<td>{cell}</td>" for cell in cells) in shown


def test_where_no_class_came_back_forgetting_is_not_told() -> None:
    assert "no class came back after it was gone" in report([[20, -1], [18, -1], [-1, 5]])


def test_the_confusion_matrix_is_told_in_shares_of_a_row() -> None:
    shown = report(LIFE)

    assert "Most often mixed up: 41.7 % of cat taken for dog" in shown
    assert "cat answered as dog: 25 of 60" in shown
    assert "no answer" not in shown


def test_samples_without_an_answer_have_a_column_of_their_own() -> None:
    told = timeline(LIFE)
    told["confusion"][0][-1] = 60

    shown = page(Gathered(model=model(), timeline=told), stream="default")

    assert "cat answered as no answer: 60 of 120" in shown


def test_a_hundred_classes_and_64_experts_make_a_page_of_bounded_size() -> None:
    names = tuple(f"class {k}" for k in range(100))
    life = timeline([[k % 21 for k in range(100)]] * 64, classes=names)
    told = Gathered(model=model(64, names), timeline=life)

    shown = page(told, stream="default")

    assert len(shown) < 2_000_000
    assert ">class 7<title>" not in shown, "no name fits beside so small a cell"


def test_what_went_wrong_is_counted() -> None:
    told = [Event(id=str(at), kind="rolled_back", data={"at": 1.8e9 + at}) for at in (0, 60)]
    told.append(Event(id="9", kind="snapshot", data={"version": 1}))

    shown = page(Gathered(model=model(), timeline=timeline(LIFE), events=told), stream="default")

    assert "What else happened: 2 events" in shown
    row = ("the model went back to an earlier state", "2")
    assert "".join(f"<td>{cell}</td>" for cell in row) in shown
    assert "2027-01-15 08:00:00 UTC</td><td>2027-01-15 08:01:00 UTC" in shown
    assert "Nothing is known to have gone wrong" in report(LIFE)


def test_novelty_has_the_unit_of_the_preset() -> None:
    paper = model() | {"sample_gradients": None}

    shown = page(Gathered(model=paper, timeline=timeline(LIFE)), stream="default")

    assert ">novelty, of the replay buffer</text>" in shown
    assert "<td>sample-gradients spent</td><td>-</td>" in shown


# What is missing


@pytest.mark.parametrize(
    "said",
    [
        "Accuracy is not known: no sample came with a label",
        "Classes cannot be told apart over time",
        "Accuracy per class is not known",
        "What is taken for what is not known",
        "Forgetting cannot be told: no class came back",
    ],
)
def test_without_labels_it_says_so(said: str) -> None:
    told = timeline([[20], [20]], classes=("cat",))
    told["points"] |= {"labelled": [0, 0], "correct": [0, 0]}
    told |= {"classes": [], "confusion": [], "forgetting": None}
    told["by_class"] |= {"labelled": [[], []], "correct": [[], []]}
    unlabelled = model(classes=()) | {"samples_labelled": 0, "prequential_accuracy": None}

    assert said in page(Gathered(model=unlabelled, timeline=told), stream="default")


def test_of_a_model_older_than_its_time_line_it_says_what_is_not_known() -> None:
    empty: dict[str, Any] = timeline([], classes=()) | {"confusion": [], "forgetting": None}
    empty["points"] = {name: [] for name in empty["points"]}

    shown = page(Gathered(model=model(), timeline=empty), stream="default")

    assert "Growth is not known: the time line has no entry yet" in shown
    assert "Novelty is not known: none was measured yet" in shown
    assert "How long it took is not known" in shown


async def gathered(samples: httpx.Response) -> Gathered:
    """Return what is gathered of a service that answers so for the samples of an expert."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            return httpx.Response(503, json={"code": "unavailable", "detail": "away"})
        if request.url.path.endswith("/samples"):
            assert request.url.params["n"] == str(EACH)
            return samples
        told = model() if request.url.path.endswith("/experts") else timeline(LIFE)
        return httpx.Response(200, json=told)

    async with AsyncClient(transport=httpx.MockTransport(answer), retry_s=0) as client:
        return await gather(client, client)


async def test_images_are_shown_and_escaped() -> None:
    one = {"sample_id": "1:0", "label": HOSTILE, "png": PNG}
    hostile = {**one, "png": '"><script>'}
    found = await gathered(httpx.Response(200, json={"replay": [one, hostile], "drawn": []}))

    shown = page(found, stream="default")

    images = [told for tag, told in Markup(shown).tags if tag == "img"]
    assert len(images) == 4  # two of each of two experts
    assert images[0] == {
        "src": f"data:image/png;base64,{PNG}",
        "alt": f"label {HOSTILE}",
        "title": f"label {HOSTILE}",
    }
    assert not Markup(shown).foreign


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (httpx.Response(404, json={"code": "x", "detail": "no expert 0"}), "no expert 0."),
        (httpx.Response(503, json={"code": "x", "detail": "Redis is away"}), "Redis is away."),
        (httpx.Response(200, json={"replay": None, "replay_reason": "no Redis"}), "no Redis."),
        (httpx.Response(200, json={"replay": [], "drawn": []}), "none were found"),
        (
            httpx.Response(200, json={"replay": [{"label": 1, "values": [0.5]}]}),
            "they are no images",
        ),
    ],
)
async def test_where_there_are_no_images_it_says_why(answer: httpx.Response, said: str) -> None:
    shown = page(await gathered(answer), stream="default")

    assert f"Samples are not shown: {said}" in shown
    assert "What else happened is not known" in shown
    assert "<img" not in shown


# What no label can do


def test_no_name_becomes_markup() -> None:
    names = (HOSTILE, "plain")
    told = Gathered(
        model=model(classes=names)
        | {"experts": [expert(0, classes=[HOSTILE], cause=HOSTILE), expert(1)]},
        timeline=timeline(LIFE, classes=names),
        missing=[HOSTILE],
    )

    shown = page(told, stream=HOSTILE)

    assert shown.count("&lt;img src=x onerror=alert(1)&gt;") > 10
    assert not Markup(shown).foreign


def test_a_name_that_is_not_escaped_would_be_found() -> None:
    assert len(Markup(report(LIFE).replace("dog", HOSTILE)).foreign) > 1


def test_it_loads_nothing() -> None:
    shown = report(LIFE)

    assert not Markup(shown).foreign
    assert "http" not in shown
    assert "@import" not in shown
    assert "url(" not in shown


# The command


@pytest.fixture
def url(live: Settings) -> str:
    return f"http://127.0.0.1:{live.port}"


@pytest.mark.usefixtures("learning")
def test_the_command_writes_what_a_service_has_learned(url: str, tmp_path: Path) -> None:
    out = tmp_path / "out.html"
    out.write_text("an older report")
    np.savez(tmp_path / "data.npz", x=X, y=np.array([HOSTILE, "plain"] * 10))
    levit("observe", str(tmp_path / "data.npz"), "--batch-size", "4", "--url", url)

    done = levit("report", str(out), "--url", url)

    shown = out.read_text(encoding="utf-8")
    assert done.exit_code == 0, done.exception
    assert f"{out} written: model" in done.stdout
    assert "20 samples learned by" in shown
    assert "Nothing is known to have gone wrong" in shown
    assert "samples since the start</text>" in shown
    assert "older" not in shown
    assert not Markup(shown).foreign


# The picture


@pytest.fixture
def browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A browser that draws ten rows of ink on a page of 200."""
    image = Image.new("RGB", (40, 200), "white")
    image.paste((0, 0, 0), (0, 0, 40, 10))
    image.save(tmp_path / "drawn.png")
    found = tmp_path / "bin" / "chromium"
    found.parent.mkdir()
    found.write_text(
        "#!/bin/sh\nfor one; do case $one in --screenshot=*) "
        f"/bin/cp {tmp_path}/drawn.png ${{one#--screenshot=}};; esac; done\n"
    )
    found.chmod(0o755)
    monkeypatch.setenv("PATH", str(found.parent))
    return found


@pytest.mark.usefixtures("browser")
def test_the_picture_ends_where_the_page_ends(tmp_path: Path) -> None:
    draw(tmp_path / "out.html", tmp_path / "out.png")

    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (40, 34)  # ten rows, and a margin of 24


def test_without_a_browser_what_is_missing_is_named(browser: Path, tmp_path: Path) -> None:
    browser.unlink()

    with pytest.raises(Misused, match=r"none of chromium, .* is installed; .*out\.html is written"):
        draw(tmp_path / "out.html", tmp_path / "out.png")


def test_a_browser_that_fails_is_named(browser: Path, tmp_path: Path) -> None:
    browser.write_text("#!/bin/sh\nexit 1\n")

    with pytest.raises(Misused, match="chromium made no picture"):
        draw(tmp_path / "out.html", tmp_path / "out.png")


@pytest.mark.usefixtures("browser")
def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(Misused, match=r"cannot write .*none/out\.png: No such file"):
        draw(tmp_path / "out.html", tmp_path / "none" / "out.png")


@pytest.mark.browser
def test_a_real_browser_draws_the_whole_page(tmp_path: Path) -> None:
    (tmp_path / "out.html").write_text(report(LIFE), encoding="utf-8")

    draw(tmp_path / "out.html", tmp_path / "out.png")

    with Image.open(tmp_path / "out.png") as image:
        assert image.width == WIDTH
        assert 2000 < image.height < TALLEST


@pytest.mark.browser
@pytest.mark.timeout(120)
def test_everybody_can_read_it_and_no_name_runs(tmp_path: Path) -> None:
    out, names = tmp_path / "out.html", (HOSTILE, "plain")
    sample = {"label": HOSTILE, "png": PNG}
    told = Gathered(
        model=model(classes=names),
        timeline=timeline(LIFE, classes=names),
        replay={0: [sample] * EACH, 1: [sample]},
    )
    out.write_text(page(told, stream=HOSTILE), encoding="utf-8")

    with opened_browser() as window:
        for dark, width in product((False, True), (1280, 500)):
            window.media(dark=dark)
            window.width(width)
            window.open(out.as_uri())
            window.run(AXE)

            assert window.run(SERIOUS) == [], (dark, width)
            assert window.run("return document.documentElement.scrollWidth <= innerWidth"), width
            assert window.run("return document.querySelector('img[src=x], script')") is None


@pytest.mark.usefixtures("learning")
def test_a_page_that_cannot_be_written_is_named(url: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X)
    levit("observe", str(tmp_path / "data.npz"), "--url", url)

    refused = levit("report", str(tmp_path / "none" / "out.html"), "--url", url).exception

    assert isinstance(refused, Misused)
    assert str(refused) == f"cannot write {tmp_path}/none/out.html: No such file or directory"


@pytest.mark.usefixtures("learning")
def test_before_anything_was_learned_there_is_no_page(url: str, tmp_path: Path) -> None:
    done = levit("report", str(tmp_path / "out.html"), "--url", url)

    assert isinstance(done.exception, Misused)
    assert not (tmp_path / "out.html").exists()


def test_a_service_that_is_not_there_is_said(tmp_path: Path, unused_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"

    refused = levit("report", str(tmp_path / "out.html"), "--url", url).exception

    assert isinstance(refused, ApiError)
    assert refused.code == "unreachable"
    assert "\n" not in str(refused)


def test_a_key_that_may_not_read_gets_no_page(
    live: Settings, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, predicts = create_key(live.state_dir, name="screen", scopes=["predict"])
    monkeypatch.setenv("LEVIT_KEY", predicts)

    def ask() -> BaseException | None:
        return levit("report", str(tmp_path / "out.html"), "--url", url).exception

    deadline = time.monotonic() + 10
    while not isinstance(refused := ask(), ApiError) and time.monotonic() < deadline:
        time.sleep(0.05)  # until the service has seen that there are keys

    assert isinstance(refused, ApiError)
    assert (refused.status, refused.code) == (403, "foreign_scope")
    assert not (tmp_path / "out.html").exists()
