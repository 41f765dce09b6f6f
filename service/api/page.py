"""The page at /docs: /openapi.json as a table to read, without a script or anything from elsewhere.

FastAPI's own page loads its scripts from a CDN, and those would run with the reader's access.
"""

from collections.abc import Iterator
from html import escape
from typing import Any, Final

from service.api.access import STREAM_PREFIX

HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""Let the page load nothing, whatever stood in it."""
_HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }}
summary {{ cursor: pointer }} code {{ font-size: 95% }} td, th {{ padding: 0 1em 0 0; text-align:
left; vertical-align: top }} p {{ white-space: pre-line }} details {{ margin: .4em 0 }}
</style></head><body><h1>{title}</h1><p>{description}</p>
<p>For programs: <a href="/openapi.json">/openapi.json</a>. Routes of a stream are here without the
prefix <code>{prefix}</code>, under which each declared stream has them, too.</p>
"""


def page(document: dict[str, Any]) -> str:
    """Return an OpenAPI document as HTML, a section for each tag."""
    info = document["info"]
    head = _HEAD.format(
        title=escape(f"{info['title']} {info['version']}"),
        description=escape(info["description"]),
        prefix=escape(STREAM_PREFIX),
    )
    sections: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        if path.startswith(f"{STREAM_PREFIX}/"):
            continue
        for method, operation in methods.items():
            tag = operation["tags"][0]
            sections.setdefault(tag, []).append(_operation(method.upper(), path, operation))
    body = "".join(f"<h2>{escape(tag)}</h2>{''.join(one)}" for tag, one in sections.items())
    return f"{head}{body}</body></html>\n"


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    first, _, rest = operation.get("description", "").partition("\n")
    needs = operation.get("x-scope", "open")
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(said)}</td></tr>"
        for name, said in _rows(operation)
    )
    return (
        f"<details><summary><code>{method} {escape(path)}</code> ({needs}): {escape(first)}"
        f"</summary><p>{escape(rest.strip())}</p><table>{rows}</table></details>\n"
    )


def _rows(operation: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a request may carry and how it may be answered, each with what is said of it."""
    for one in operation.get("parameters", []):
        schema = one["schema"]
        bounds = schema.get("pattern") or schema.get("type", "")
        said = f"{one['in']} {bounds} {one.get('description', '')}"
        yield one["name"], " ".join(said.split())
    for media_type in operation.get("requestBody", {}).get("content", {}):
        yield media_type, "body"
    for status, said in operation["responses"].items():
        yield status, said["description"]
