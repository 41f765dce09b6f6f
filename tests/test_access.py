"""Routes and scopes: every route of the app has a row, and no other path is reached."""

from typing import cast

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from service.api.access import SCOPE_OF, STREAM_PREFIX, rule_of
from service.api.app import create_app
from service.engine.protocol import Engines
from service.settings import Settings
from tests.served import assert_problem, load_pixel_engines

ROWS = sorted(SCOPE_OF)


def routes_of_the_app() -> set[tuple[str, str]]:
    """Return (method, template) of every route, those without a place in the documents too."""
    app = create_app(Settings(insecure=True), lambda: cast(Engines, None))
    return {
        (method, str(route.path))
        for route in iter_route_contexts(app.routes)
        for method in route.methods or {"GET"}
    }


def example(template: str) -> str:
    """Return a path of a template."""
    return template.replace("{stream}", "some").replace("{", "").replace("}", "")


def test_every_route_of_the_app_has_a_row() -> None:
    asked = {("GET" if method == "HEAD" else method, path) for method, path in routes_of_the_app()}

    assert asked <= set(SCOPE_OF)


def test_every_row_is_a_route_of_the_app() -> None:
    plain = {row for row in SCOPE_OF if not row[1].startswith(STREAM_PREFIX)}

    assert plain <= routes_of_the_app()


@pytest.mark.parametrize(("method", "template"), ROWS)
def test_a_path_is_of_its_own_row_only(method: str, template: str) -> None:
    rule = rule_of(example(template))

    assert rule is not None
    assert (rule.template, rule.of(method)) == (template, SCOPE_OF[method, template])


@pytest.mark.parametrize("path", ["", "/observe/", "/Observe", "/observe\n", "//observe", "/x"])
def test_a_path_of_no_row_has_no_rule(path: str) -> None:
    assert rule_of(path) is None


async def test_a_route_without_a_row_is_never_reached(api_settings: Settings) -> None:
    app = create_app(api_settings, load_pixel_engines)

    @app.get("/forgotten")
    async def forgotten() -> str:
        return "reached"

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://localhost"
    ) as client:
        assert_problem(await client.get("/forgotten"), 404, "not_found")


def test_plain_rows_and_rows_of_streams_need_the_same() -> None:
    twins = [(m, p) for m, p in SCOPE_OF if (m, STREAM_PREFIX + p) in SCOPE_OF]

    assert len(twins) > 10
    assert all(SCOPE_OF[m, p] == SCOPE_OF[m, STREAM_PREFIX + p] for m, p in twins)
