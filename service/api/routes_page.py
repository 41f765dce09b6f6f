"""GET / and its files: the page on which people watch the learner grow.

Everybody may load the page: it holds nothing of the streams. What it shows it asks for with the key
that its reader enters. It works without any other host, and its policy lets it reach none.
"""

import hashlib
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from service import __version__
from service.errors import NotFound

HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}
_INDEX: Final = {
    "service": "LEViT Stream: an online, task-free streaming learner",
    "version": __version__,
    "observe": "POST /observe",
    "predict": "POST /predict",
    "experts": "/experts",
    "metrics": "/metrics",
    "ready": "/readyz",
    "docs": "/docs",
}


def page_files() -> dict[str, Response]:
    """Return the answers that carry the files of the page, by name."""
    home = files("service.api") / "static"
    found = [*home.iterdir(), *(home / "vendor").iterdir()]
    return {one.name: _answer(one) for one in found if one.is_file()}


def page_routes() -> APIRouter:
    """Return the routes of the page."""
    router = APIRouter(tags=["watch"])
    answers = page_files()

    @router.get("/", response_model=dict[str, str])
    async def index(request: Request) -> Response:
        """Say what this is and where to look; to a browser, with the page itself."""
        if "text/html" not in request.headers.get("Accept", ""):
            return JSONResponse(_INDEX, headers={"Vary": "Accept"})
        return _unless_known(answers["index.html"], request)

    @router.get("/page/{name}", include_in_schema=False)
    async def file(name: str, request: Request) -> Response:
        """Return a file of the page; the name only chooses among those read at the start.

        Raises:
            NotFound: `not_found`.
        """
        if name not in answers:
            raise NotFound("not_found", "the page has no such file")
        return _unless_known(answers[name], request)

    return router


def _answer(file: Traversable) -> Response:
    content = file.read_bytes()
    headers: dict[str, Any] = HEADERS | {
        "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
        "Vary": "Accept",
    }
    kind = _TYPES[file.name.rpartition(".")[2]]
    return Response(content, headers=headers, media_type=kind)


def _unless_known(answer: Response, request: Request) -> Response:
    """Return an answer, or 304 where the browser has it."""
    if request.headers.get("If-None-Match") != answer.headers["ETag"]:
        return answer
    return Response(status_code=304, headers=HEADERS | {"ETag": answer.headers["ETag"]})
