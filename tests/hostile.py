"""Files that run code, or grow without bound, in whoever opens them with the wrong tool."""

import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tests.images import as_file, as_text, bomb

_PIXELS = np.zeros((8, 8), np.uint8)
_ZEROS = bytes(2**20)


def pickles(canary: Path) -> Mapping[str, bytes]:
    """Return pickles that create the directory `canary` when they are loaded."""
    path = str(canary).encode()
    text = b"X" + struct.pack("<I", len(path)) + path
    return {
        "pickle, protocol 0": b"cos\nmkdir\n(S'" + path + b"'\ntR.",
        "pickle, protocol 2": b"\x80\x02cos\nmkdir\n" + text + b"\x85R.",
        "pickle, protocol 4": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + text + b"\x85R.",
        "pickle, by INST": b"(S'" + path + b"'\nios\nmkdir\n.",
    }


def payloads(canary: Path) -> Mapping[str, tuple[str, bytes]]:
    """Return hostile files, each with the media type that it would be sent with."""
    loaded = pickles(canary)
    code = loaded["pickle, protocol 2"]
    script = f"import os; os.mkdir({str(canary)!r})".encode()
    url = b"http://127.0.0.1:9/" + canary.name.encode()
    found = {name: ("application/octet-stream", file) for name, file in loaded.items()}
    found |= {
        "torch.save": ("application/x-pytorch", _zipped({"archive/data.pkl": code})),
        "torch.save before 1.6": (
            "application/x-pytorch",
            b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + code,
        ),
        "torch.export": ("application/x-pytorch", _zipped({"a/data/weights/w.pt": code})),
        "npy of objects": ("application/x-npy", _npy("|O", "(1,)") + code),
        "npy of 8 TB": ("application/x-npy", _npy("<f8", "(1000000, 1000000)")),
        "npy of nothing, often": ("application/x-npy", _npy("|V0", "(100000000000,)")),
        "npy with code as head": ("application/x-npy", _npy("<f8", f"({script.decode()},)")),
        "npz": ("application/x-npz", _zipped({"x.npy": _npy("|u1", "(2, 8, 8)") + bytes(128)})),
        "npz of objects": ("application/x-npz", _zipped({"x.npy": _npy("|O", "(1,)") + code})),
        "npz bomb": ("application/x-npz", _zipped({"x.npy": _npy("|u1", "(1048576,)") + _ZEROS})),
        "joblib": ("application/x-joblib", zlib.compress(code)),
        "marshal": ("application/octet-stream", b"\xe3" + bytes(12) + script),
        "HDF5": ("application/x-hdf5", b"\x89HDF\r\n\x1a\n" + bytes(64)),
        "ONNX": ("application/x-onnx", b"\x08\x07\x12\x07pytorch" + url),
        "Parquet": ("application/x-parquet", b"PAR1" + bytes(32) + b"PAR1"),
        "Arrow": ("application/vnd.apache.arrow.file", b"ARROW1\0\0" + bytes(32)),
        "MessagePack": ("application/msgpack", b"\x81\xa1x\xdd\xff\xff\xff\xff"),
        "CBOR": ("application/cbor", b"\xa1\x61x\x9b" + b"\xff" * 8),
        "YAML": ("application/yaml", b"x: !!python/object/apply:os.mkdir ['%b']" % _bytes(canary)),
        "XML": (
            "application/xml",
            b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>',
        ),
        "zip bomb": ("application/zip", _zipped({"x": _ZEROS})),
        "zip out of its folder": ("application/zip", _zipped({f"../../{canary.name}": b"x"})),
        "tar out of its folder": ("application/x-tar", _tarred(f"../{canary.name}")),
        "gzip bomb": ("application/gzip", gzip.compress(_ZEROS)),
        "gzip of JSON": ("application/gzip", gzip.compress(b'{"x": [[1, 2]]}')),
        "bzip2 bomb": ("application/x-bzip2", bz2.compress(_ZEROS)),
        "xz bomb": ("application/x-xz", lzma.compress(_ZEROS)),
        "Zstandard": ("application/zstd", b"\x28\xb5\x2f\xfd" + bytes(32)),
        "multipart": ("multipart/form-data; boundary=b", _multipart(code)),
        "form": ("application/x-www-form-urlencoded", b"x=1&y=2"),
        "text": ("text/plain", script),
        "GIF": ("image/gif", as_file(_PIXELS, "GIF")),
        "BMP": ("image/bmp", as_file(_PIXELS, "BMP")),
        "TIFF": ("image/tiff", as_file(_PIXELS, "TIFF")),
        "WebP": ("image/webp", as_file(_PIXELS, "WEBP")),
        "ICO": ("image/x-icon", as_file(_PIXELS, "ICO")),
        "FITS bomb": ("image/fits", _fits()),
        "EPS": ("application/postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n(x) (w) file\n%%EOF\n"),
        "SVG": ("image/svg+xml", b'<svg><image href="' + url + b'"/></svg>'),
        "PNG bomb": ("image/png", bomb(20_000)),
        "PNG bomb in base64": ("application/json", _document(as_text(bomb(20_000)))),
        "code in base64": ("application/json", _document(as_text(as_file(_PIXELS)[:8] + code))),
        "URL": ("application/json", _document(url.decode())),
        "file URL": ("application/json", _document("file:///etc/passwd")),
        "path": ("application/json", _document(str(canary))),
    }
    return found


def _bytes(path: Path) -> bytes:
    return str(path).encode()


def _document(sample: str) -> bytes:
    return json.dumps({"x": [sample]}).encode()


def _npy(descr: str, shape: str) -> bytes:
    head = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head


def _zipped(files: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def _tarred(name: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return file.getvalue()


def _multipart(data: bytes) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="x"; filename="../x"\r\n\r\n'
    return head + data + b"\r\n--b--\r\n"


def _fits() -> bytes:
    """Return a FITS file that says it holds a million times a million pixels, gzipped."""
    cards = ["SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 2", "NAXIS1  = 1000000", "NAXIS2  = 1000000"]
    return "".join(card.ljust(80) for card in [*cards, "END"]).ljust(2880).encode()
