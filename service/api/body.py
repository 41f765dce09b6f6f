"""A request's body as bytes: of a media type that is read, within its limit, as it was sent.

`Content-Digest` (RFC 9530) is checked where a client sends it: TCP's checksum misses some errors,
and safetensors has none.
"""

import base64
import hashlib
import re
from typing import Final

from starlette.requests import Request

from service.engine.protocol import Label
from service.errors import BadRequest, TooLarge, Unprocessable, UnsupportedMedia
from service.store.stream_schema import LabelKind

JSON: Final = "application/json"
OCTETS: Final = "application/octet-stream"
LINES: Final = "application/x-ndjson"
SAFETENSORS: Final = "application/x-safetensors"
IMAGES: Final = {"image/png": "PNG", "image/jpeg": "JPEG"}
"""Media types of images, each with its format's name."""
_SHA_256 = re.compile(r"(?:^|,)[ \t]*sha-256=([^,;]*)")
_DIGITS = re.compile(r"[0-9]{1,18}")


def media_type_of(request: Request, *expected: str) -> str:
    """Return the body's media type, one of those expected.

    A web page of another origin can send none of ours without asking first (CORS preflight), and
    is never allowed to.

    Raises:
        UnsupportedMedia: `unsupported_type` or `unsupported_encoding`.
    """
    refuse_encoding(request)
    said = request.headers.get("content-type", "")
    media_type, _, parameters = said.lower().partition(";")
    if media_type.strip() not in expected or parameters.strip() not in ("", "charset=utf-8"):
        raise UnsupportedMedia(
            "unsupported_type",
            f"expected Content-Type {' or '.join(expected)} (UTF-8), got {said[:60]!a}",
        )
    return media_type.strip()


def refuse_encoding(request: Request) -> None:
    """Check that the body is sent as it is: gzip and the like are read by none of our routes.

    Raises:
        UnsupportedMedia: `unsupported_encoding`.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise UnsupportedMedia(
            "unsupported_encoding", f"expected no Content-Encoding, got {encoding[:40]!a}"
        )


async def read_body(request: Request, limit: int, *, advice: str = "") -> bytes:
    """Return the body, of which never more than `limit` bytes and a chunk are held.

    Args:
        request: whose body has not been read yet.
        limit: most bytes.
        advice: what to do about a longer body, in words.

    Raises:
        BadRequest: `digest_mismatch`.
        TooLarge: `body_too_large`.
    """
    expected = content_digest(request)
    declared = request.headers.get("content-length", "")
    size = int(declared) if declared.isdecimal() else 0
    chunks: list[bytes] = []
    digest = hashlib.sha256()
    if size <= limit:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                break
            chunks.append(chunk)
            if expected is not None:
                digest.update(chunk)
    if size > limit:
        raise TooLarge(
            "body_too_large", f"expected a body of at most {limit} bytes, got {size}{advice}"
        )
    if expected not in (None, digest.digest()):
        raise BadRequest("digest_mismatch", "expected the body of the Content-Digest, got another")
    return b"".join(chunks)


def content_digest(request: Request) -> bytes | None:
    """Return the SHA-256 that the request says its body has; None where it says none.

    Raises:
        BadRequest: `digest_mismatch`, it is no SHA-256.
    """
    found = _SHA_256.findall(",".join(request.headers.getlist("content-digest")))
    if not found:  # digests of other algorithms are left to those who know them, as RFC 9530 says
        return None
    said = found[-1].strip()
    try:
        digest = base64.b64decode(said.removeprefix(":").removesuffix(":"), validate=True)
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise BadRequest(
            "digest_mismatch", f"expected Content-Digest: sha-256=:BASE64:, got {said[:60]!a}"
        )
    return digest


def query_label(request: Request, kind: LabelKind | None) -> Label | None:
    """Return the label of the one sample of an image body, from `?label=`.

    Digits are an integer, unless the stream's labels are strings; other text is a string.

    Raises:
        Unprocessable: `bad_label`, it is empty or said twice.
    """
    said = request.query_params.getlist("label")
    if not said:
        return None
    if len(said) > 1 or not said[0]:
        got = "none" if len(said) == 1 else str(len(said))
        raise Unprocessable("bad_label", f"expected one label in ?label=, got {got}")
    digits = kind != "string" and _DIGITS.fullmatch(said[0])
    return int(said[0]) if digits else said[0]


def refuse_query_label(request: Request) -> None:
    """Check that no label is in the query, where nobody would read it.

    Raises:
        Unprocessable: `bad_label`.
    """
    if "label" in request.query_params:
        raise Unprocessable(
            "bad_label", "expected ?label= only with an image that is observed, got it elsewhere"
        )
