"""A request's body as bytes: of a media type that is read, and no longer than is allowed."""

from typing import Final

from starlette.requests import Request

from service.errors import TooLarge, UnsupportedMedia

JSON: Final = "application/json"
SAFETENSORS: Final = "application/x-safetensors"


def media_type_of(request: Request, *expected: str) -> str:
    """Return the body's media type, one of those expected.

    A web page of another origin can send none of ours without asking first (CORS preflight), and
    is never allowed to.

    Raises:
        UnsupportedMedia: `unsupported_type` or `unsupported_encoding`.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMedia(
            "unsupported_encoding", f"expected no Content-Encoding, got {encoding[:40]!a}"
        )
    said = request.headers.get("content-type", "")
    media_type, _, parameters = said.lower().partition(";")
    if media_type.strip() not in expected or parameters.strip() not in ("", "charset=utf-8"):
        raise UnsupportedMedia(
            "unsupported_type",
            f"expected Content-Type {' or '.join(expected)} (UTF-8), got {said[:60]!a}",
        )
    return media_type.strip()


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body, of which never more than `limit` bytes and a chunk are held.

    Raises:
        TooLarge: `body_too_large`.
    """
    declared = request.headers.get("content-length", "")
    size = int(declared) if declared.isdecimal() else 0
    chunks: list[bytes] = []
    if size <= limit:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                break
            chunks.append(chunk)
    if size > limit:
        raise TooLarge("body_too_large", f"expected a body of at most {limit} bytes, got {size}")
    return b"".join(chunks)
