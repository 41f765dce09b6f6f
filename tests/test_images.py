"""PNG and JPEG bodies: brought to the stream's shape by one rule, refused before they cost much."""

import json
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Sequence
from dataclasses import replace
from unittest.mock import patch

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from service.api import codec
from service.api.body import IMAGES
from service.api.bounds import Limits
from service.api.image_body import MAX_SCANS, from_base64, read_images
from service.engine.protocol import Array
from service.errors import ServiceError, TooLarge, Unprocessable
from service.inputs import InputSchema
from tests.images import as_file, as_text, bomb, many_scans, png, turned
from tests.served import PIXELS, assert_problem, logged, stored

PNG, JPEG = IMAGES
GREY = InputSchema.parse("image:8x8x1")
COLOUR = InputSchema.parse("image:8x8x3")
LIMITS = Limits(
    max_body_bytes=2**23, max_json_bytes=2**20, max_batch=16, max_pixels=2**16, line_s=1, stream_s=1
)
NOISE = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
ARROW = np.zeros((8, 12), np.uint8)
ARROW[1, :9], ARROW[:4, 2] = 255, 90
"""A grey picture that is another one however it is turned."""


def read(*files: bytes, known: InputSchema | None = None, limits: Limits = LIMITS) -> Array:
    return read_images(files, known=known, limits=limits)


def refusal(*files: bytes, known: InputSchema | None = None, limits: Limits = LIMITS) -> str:
    with pytest.raises(ServiceError) as refused:
        read(*files, known=known, limits=limits)
    assert len(refused.value.message) < 200
    return refused.value.code


# The rule


@pytest.mark.parametrize("pixels", [NOISE, NOISE[..., 0]], ids=["colour", "grey"])
@pytest.mark.parametrize("declared", [True, False])
def test_a_png_of_the_streams_shape_keeps_every_pixel(pixels: Array, *, declared: bool) -> None:
    shape = (12, 20, 3 if pixels.ndim == 3 else 1)

    x = read(as_file(pixels), known=InputSchema("image", shape) if declared else None)

    np.testing.assert_array_equal(x, pixels.reshape(1, *shape))
    assert x.dtype == np.uint8


def test_a_larger_image_is_resized_whole() -> None:
    halves = np.zeros((40, 80, 3), np.uint8)
    halves[:, 40:] = 200

    x = read(as_file(halves), known=COLOUR)

    assert x[0, :, :3].max() == 0
    assert x[0, :, 5:].min() == 200


def test_shrinking_averages_rather_than_picks_pixels() -> None:
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)

    x = read(as_file(checks), known=GREY)

    assert 120 <= x.min() <= x.max() <= 135


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        pytest.param(Image.new("RGB", (8, 8), (255, 0, 0)), [76], id="red as luma"),
        pytest.param(Image.new("1", (8, 8), 1), [255], id="one bit"),
        pytest.param(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), [255], id="nothing on white"),
        pytest.param(Image.new("LA", (8, 8), (0, 255)), [0], id="opaque"),
    ],
)
def test_one_channel_is_luma_on_white(image: Image.Image, expected: list[int]) -> None:
    np.testing.assert_array_equal(read(as_file(image), known=GREY)[0, 4, 4], expected)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        pytest.param(Image.new("L", (8, 8), 9), [9, 9, 9], id="grey"),
        pytest.param(Image.new("RGBA", (8, 8), (255, 0, 0, 102)), [255, 153, 153], id="glass"),
        pytest.param(Image.new("RGB", (8, 8), (1, 2, 3)).quantize(), [1, 2, 3], id="palette"),
    ],
)
def test_three_channels_are_rgb_on_white(image: Image.Image, expected: list[int]) -> None:
    np.testing.assert_array_equal(read(as_file(image), known=COLOUR)[0, 4, 4], expected)


def test_a_palette_with_transparency_is_read_without_a_warning() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 9, 9, 9])

    x = read(as_file(image, transparency=bytes([0, 255])), known=COLOUR)

    np.testing.assert_array_equal(x[0, 4, 4], [9, 9, 9])


def test_of_16_bits_the_high_ones_are_kept() -> None:
    deep = np.full((8, 8), 0x1280, np.uint16)

    assert set(read(as_file(deep), known=GREY).flat) == {0x12}


def test_a_jpeg_in_cmyk_becomes_rgb() -> None:
    x = read(as_file(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"))

    assert x.shape == (1, 8, 8, 3)
    assert x.min() > 250


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_stands_upright_however_the_camera_was_held(orientation: int) -> None:
    how = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = Image.fromarray(ARROW)
    held = upright if orientation == 1 else upright.transpose(how[orientation])

    x = read(turned(held, orientation))

    np.testing.assert_array_equal(x[0, ..., 0], ARROW)


def test_the_first_image_of_a_stream_sets_the_shape_for_all() -> None:
    x = read(as_file(NOISE[..., 0]), as_file(np.repeat(NOISE, 2, axis=0)))

    assert x.shape == (2, 12, 20, 1)


# What is refused


@pytest.mark.parametrize(
    ("files", "known", "code"),
    [
        pytest.param([], None, "empty_batch", id="none"),
        pytest.param([as_file(NOISE)] * 17, None, "batch_too_large", id="too many"),
        pytest.param([as_file(NOISE)], InputSchema.parse("vector:2"), "schema_mismatch", id="kind"),
        pytest.param([as_file(NOISE[:7])], None, "bad_shape", id="too small to begin with"),
        pytest.param([b""], None, "bad_image", id="nothing"),
        pytest.param([as_file(NOISE)[:-30]], None, "bad_image", id="half a PNG"),
        pytest.param([as_file(NOISE, "JPEG")[:-30]], None, "bad_image", id="half a JPEG"),
        pytest.param([as_file(NOISE, "GIF")], None, "bad_image", id="GIF"),
        pytest.param([as_file(NOISE, "BMP")], None, "bad_image", id="BMP"),
        pytest.param([as_file(NOISE, "TIFF")], None, "bad_image", id="TIFF"),
        pytest.param([as_file(NOISE, "WEBP")], None, "bad_image", id="WebP"),
        pytest.param([bomb(1000)], None, "too_many_pixels", id="bomb"),
        pytest.param(
            [as_file(np.zeros((128, 128), np.uint8))] * 5, GREY, "too_many_pixels", id="together"
        ),
        pytest.param([many_scans(MAX_SCANS)], None, "bad_image", id="scans"),
    ],
)
def test_a_bad_image_is_refused(
    files: Sequence[bytes], known: InputSchema | None, code: str
) -> None:
    assert refusal(*files, known=known) == code


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    image = bomb(40_000)  # 1.6 billion pixels in 200 kB

    with patch.object(ImageFile.ImageFile, "load") as decoded:
        code = refusal(image, known=GREY, limits=replace(LIMITS, max_pixels=2**26))

    assert code == "too_many_pixels"
    decoded.assert_not_called()


def test_a_bomb_within_the_limit_is_only_an_image() -> None:
    assert read(bomb(256), known=GREY).shape == (1, 8, 8, 1)


def test_as_many_scans_as_allowed_are_read() -> None:
    scans = many_scans(0).count(b"\xff\xda")

    assert read(many_scans(MAX_SCANS - scans), known=GREY).shape == (1, 8, 8, 1)


def test_a_message_names_the_sample_and_nothing_of_the_file() -> None:
    with pytest.raises(ServiceError, match=r"got something else at sample 1$"):
        read(as_file(NOISE), b"canary-5d1f")


@pytest.mark.parametrize(
    "text", ["", "iVBOR", "data:image/png;base64,iVBOR", "é", "\ud800", "a\nb"]
)
def test_what_is_no_base64_or_no_image_is_refused(text: str) -> None:
    with pytest.raises(Unprocessable) as refused:
        read_images(from_base64([text]), known=None, limits=LIMITS)

    assert refused.value.code == "bad_image"


def test_a_warning_of_the_image_library_is_an_error_wherever_it_runs() -> None:
    warned = subprocess.run(
        [
            sys.executable,
            "-c",
            "import service.api.image_body, warnings;"
            "warnings.warn_explicit('odd', UserWarning, 'x.py', 1, module='PIL.Image')",
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert "UserWarning: odd" in warned.stderr
    assert warned.returncode == 1


# Anything at all


def _accepts_or_refuses(file: bytes) -> None:
    try:
        x = read(file, known=GREY)
    except (TooLarge, Unprocessable):
        return
    assert x.shape == (1, 8, 8, 1)
    assert x.dtype == np.uint8


GOOD = [
    as_file(NOISE),
    as_file(NOISE[..., 0]),
    as_file(Image.fromarray(NOISE).quantize(16), transparency=3),
    as_file(NOISE, "JPEG"),
    as_file(NOISE, "JPEG", progressive=True),
    as_file(Image.fromarray(NOISE).convert("CMYK"), "JPEG"),
    turned(Image.fromarray(NOISE), 6),
    bomb(64),
]


@given(st.binary(max_size=300), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"]))
def test_any_bytes_are_an_image_or_refused(body: bytes, magic: bytes) -> None:
    _accepts_or_refuses(magic + body)


@given(st.sampled_from(GOOD), st.data())
def test_a_damaged_image_is_read_or_refused(file: bytes, data: st.DataObject) -> None:
    damaged = bytearray(file)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(file)))

    _accepts_or_refuses(bytes(damaged))
    _accepts_or_refuses(bytes(damaged[:cut]) + bytes(damaged[cut + 1 :]))


CHUNKS = [b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"eXIf", b"acTL", b"fcTL", b"IDAT"]
EXIF = b"II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\x69\x87\x04\0\x01\0\0\0\x26\0\0\0"
heads = st.builds(
    lambda side, depth, kind: struct.pack(">IIBBBBB", side, 8, depth, kind, 0, 0, 0),
    st.sampled_from([0, 8, 2**31]),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.sampled_from([0, 2, 3, 4, 6]),
)
chunk_data = (
    st.binary(max_size=40)
    | st.binary(max_size=40).map(lambda data: b"k\0\0" + zlib.compress(data))
    | st.just(b"k\0\0" + zlib.compress(bytes(2**21)))
    | st.integers(0, len(EXIF) - 1).map(lambda at: EXIF[:at] + b"\xff" + EXIF[at + 1 :])
)


@given(heads, st.lists(st.tuples(st.sampled_from(CHUNKS), chunk_data), max_size=4), st.binary())
def test_a_png_of_odd_chunks_is_read_or_refused(
    head: bytes, chunks: list[tuple[bytes, bytes]], pixels: bytes
) -> None:
    # Right checksums, as a damaged chunk is refused before anybody looks into it.
    ends = [(b"IDAT", zlib.compress(pixels.ljust(600))), (b"IEND", b"")]

    _accepts_or_refuses(png([(b"IHDR", head), *chunks, *ends]))


# Over HTTP


async def test_an_image_is_logged_as_pixels_with_its_label(
    api: httpx.AsyncClient, redis_server: str
) -> None:
    answer = await api.post(
        "/observe?label=cat", content=as_file(PIXELS[0]), headers={"Content-Type": PNG}
    )

    [entry] = logged(redis_server)
    assert answer.status_code == 202
    assert (str(entry.schema), entry.label(0)) == ("image:8x8x1", "cat")
    np.testing.assert_array_equal(entry.x, PIXELS[:1, ..., None])


async def test_images_in_json_are_logged_as_pixels(
    api: httpx.AsyncClient, redis_server: str
) -> None:
    images = [as_text(as_file(pixels)) for pixels in PIXELS]

    answer = await api.post("/observe", json={"x": images, "y": [3, None]})

    [entry] = logged(redis_server)
    assert answer.status_code == 202
    assert [entry.label(0), entry.label(1)] == [3, None]
    np.testing.assert_array_equal(entry.x, PIXELS[..., None])


@pytest.mark.parametrize(
    ("first", "text", "expected"),
    [
        pytest.param(None, "7", 7, id="digits on a new stream"),
        pytest.param(1, "7", 7, id="digits on a stream of integers"),
        pytest.param("a", "7", "7", id="digits on a stream of strings"),
        pytest.param("a", "-7", "-7", id="no digits"),
        pytest.param("a", "%C3%A9%20%26", "é &", id="escaped"),
    ],
)
async def test_a_label_in_the_query_is_of_the_streams_kind(
    api: httpx.AsyncClient, redis_server: str, first: object, text: str, expected: object
) -> None:
    await api.post("/observe", json={"x": PIXELS[:1].tolist(), "y": [first]})

    answer = await api.post(
        f"/observe?label={text}", content=as_file(PIXELS[0]), headers={"Content-Type": PNG}
    )

    assert answer.status_code == 202
    assert logged(redis_server)[-1].label(0) == expected


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("label=", "bad_label"),
        ("label=1&label=2", "bad_label"),
        ("label=" + "a" * 65, "bad_label"),
        ("label=9999999999999999999", "label_kind_mismatch"),
        ("label=a", "label_kind_mismatch"),
        ("label=%ff", "label_kind_mismatch"),
    ],
)
async def test_a_bad_label_in_the_query_is_refused(
    api: httpx.AsyncClient, redis_server: str, query: str, code: str
) -> None:
    await api.post("/observe", json={"x": PIXELS[:1].tolist(), "y": [1]})

    answer = await api.post(
        f"/observe?{query}", content=as_file(PIXELS[0]), headers={"Content-Type": PNG}
    )

    assert_problem(answer, 422, code)
    assert len(logged(redis_server)) == 1


@pytest.mark.parametrize("route", ["/observe", "/predict"])
async def test_a_label_in_the_query_that_nobody_would_read_is_refused(
    api: httpx.AsyncClient, route: str
) -> None:
    answer = await api.post(f"{route}?label=1", json={"x": PIXELS.tolist()})

    assert_problem(answer, 422, "bad_label")


async def test_a_key_with_another_label_is_refused(api: httpx.AsyncClient) -> None:
    headers = {"Content-Type": PNG, "Idempotency-Key": "0123456789abcdef"}
    await api.post("/observe?label=1", content=as_file(PIXELS[0]), headers=headers)

    again = await api.post("/observe?label=1", content=as_file(PIXELS[0]), headers=headers)
    other = await api.post("/observe?label=2", content=as_file(PIXELS[0]), headers=headers)

    assert again.headers["Idempotent-Replayed"] == "true"
    assert_problem(other, 422, "idempotency_key_reused")


async def test_a_media_type_takes_its_own_format_only(
    api: httpx.AsyncClient, redis_server: str
) -> None:
    answer = await api.post("/observe", content=as_file(NOISE), headers={"Content-Type": JPEG})

    assert_problem(answer, 422, "bad_image")
    assert stored(redis_server) == []


async def test_predict_answers_for_an_image_as_for_its_pixels(serving: httpx.AsyncClient) -> None:
    as_json = await serving.post("/predict", json={"x": PIXELS[1:].tolist()})
    as_png = await serving.post(
        "/predict", content=as_file(PIXELS[1]), headers={"Content-Type": PNG}
    )

    assert as_png.status_code == 200
    assert as_png.json() == as_json.json()


@pytest.mark.parametrize("escaped", [False, True], ids=["plain", "with escapes"])
async def test_small_bodies_with_images_are_decoded_off_the_event_loop(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, *, escaped: bool
) -> None:
    threads: list[str] = []

    def noted(*args: object, **options: object) -> None:
        threads.append(threading.current_thread().name)
        raise Unprocessable("bad_image", "stop here")

    monkeypatch.setattr("service.api.json_body.read_images", noted)
    image = as_text(as_file(PIXELS[0], "JPEG"))
    body = json.dumps({"x": [image]})
    body = body.replace("/", "\\/").replace("9", "\\u0039") if escaped else body

    await api.post("/observe", content=body, headers={"Content-Type": "application/json"})

    assert len(body) < codec._SMALL_BYTES
    assert [name.split("_")[0] for name in threads] == ["decode"]
