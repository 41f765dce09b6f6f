"""Whatever is sent, and as whatever: refused with 4xx, nothing run, nothing kept, little held."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from service.api.body import IMAGES, JSON, LINES, SAFETENSORS
from tests.bad_bodies import BAD_JSON
from tests.hostile import payloads, pickles
from tests.images import as_text
from tests.served import DOCUMENT, logged, stored

NAMES = list(payloads(Path("x")))
DISGUISES = (JSON, SAFETENSORS, *IMAGES)
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path that is there only once somebody has run what was sent."""
    return tmp_path_factory.mktemp("cage") / "canary"


@pytest.fixture(scope="module")
def hostile(canary: Path) -> Mapping[str, tuple[str, bytes]]:
    """Every hostile file, by name, with the media type it would be sent with."""
    return payloads(canary)


def has_appeared(canary: Path) -> bool:
    return canary.exists()


@pytest.mark.parametrize("route", ["/observe", "/predict", "/labels"])
@pytest.mark.parametrize("name", NAMES)
async def test_a_hostile_file_is_refused_in_every_disguise(
    api: httpx.AsyncClient,
    redis_server: str,
    hostile: Mapping[str, tuple[str, bytes]],
    canary: Path,
    name: str,
    route: str,
) -> None:
    own, file = hostile[name]
    sent = [
        *((media_type, file) for media_type in {own, *DISGUISES}),
        (JSON, json.dumps({"x": [as_text(file)]}).encode()),
        ("image/png", PNG_MAGIC + file),
    ]

    answers = [
        await api.post(route, content=body, headers={"Content-Type": media_type})
        for media_type, body in sent
    ]

    assert {answer.status_code for answer in answers} <= {400, 413, 415, 422}
    assert {answer.headers["content-type"] for answer in answers} == {"application/problem+json"}
    assert not has_appeared(canary)
    assert stored(redis_server) == []


@pytest.mark.parametrize("name", pickles(Path("x")))
def test_these_pickles_would_run_code(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"

    subprocess.run(
        [sys.executable, "-c", "import pickle, sys; pickle.load(sys.stdin.buffer)"],
        input=pickles(canary)[name],
        check=True,
    )

    assert has_appeared(canary)  # the control: whoever loads them has lost


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, identity", "x"])
async def test_an_encoded_body_is_refused_unread(api: httpx.AsyncClient, encoding: str) -> None:
    headers = {"Content-Type": JSON, "Content-Encoding": encoding}

    answer = await api.post("/observe", content=json.dumps(DOCUMENT), headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_encoding")


async def test_as_lines_all_bad_bodies_are_refused_one_by_one(
    api: httpx.AsyncClient, redis_server: str
) -> None:
    bad = [row for row in BAD_JSON if row[3].strip()]
    good = json.dumps(DOCUMENT).encode()
    body = b"\n".join([good, *(row[3] for row in bad), good])

    answer = await api.post("/observe", content=body, headers={"Content-Type": LINES})

    said = [json.loads(line) for line in answer.text.splitlines()]
    assert [one["status"] for one in said] == [202, *(row[1] for row in bad), 202]
    assert {one["code"] for one in said[1:-1]} <= {"schema_mismatch", *(row[2] for row in bad)}
    assert len(logged(redis_server)) == 2


_DECODE = r"""
import re, sys
from pathlib import Path
from concurrent.futures import ThreadPoolExecutor
from service.api.bounds import Limits
from service.api.image_body import read_images
from service.errors import ServiceError
from service.inputs import InputSchema
from tests.images import as_file, bomb

side, limit, count = map(int, sys.argv[1:])
bombs = [bomb(side)] * count
known = InputSchema.parse("image:8x8x1")
limits = Limits(
    max_body_bytes=2**23, max_json_bytes=2**20, max_batch=16, max_pixels=limit, line_s=1, stream_s=1
)

def code(file):
    try:
        return str(read_images([file], known=known, limits=limits).shape)
    except ServiceError as error:
        return error.code

def peak_kib():
    # Not getrusage: its peak begins with that of the process that started this one.
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])

code(bomb(8))
before = peak_kib()
with ThreadPoolExecutor(2) as threads:
    codes = set(threads.map(code, bombs))
print(*codes, (peak_kib() - before) // 1024)
"""


async def _decoded(side: int, limit: int, count: int) -> tuple[str, int]:
    """Return what became of `count` bombs, and by how many MiB the process grew meanwhile."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _DECODE,
        *map(str, (side, limit, count)),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    outcome, grown = output.decode().rsplit(maxsplit=1)
    return outcome, int(grown)


async def test_50_pixel_bombs_cost_next_to_no_memory() -> None:
    outcome, grown = await _decoded(20_000, 2**24, 50)

    assert outcome == "too_many_pixels"
    assert grown <= 32


async def test_a_bomb_that_is_decoded_costs_memory() -> None:
    outcome, grown = await _decoded(8_000, 2**26, 2)  # the control: within the limit

    assert outcome == "(1, 8, 8, 1)"
    assert grown > 32
