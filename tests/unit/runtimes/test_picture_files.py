"""The golden pictures of a bundle are a stranger's files: sound PNG, or a gate that fails in words."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import pytest
from PIL import EpsImagePlugin, Image

from flashbulb.export.bundle import Bundle
from flashbulb.runtimes.source_gates import picture_file_gate


def written(picture: Image.Image, file_format: str) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, file_format)
    return stream.getvalue()


def with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    """Put a chunk behind the header of a PNG."""
    whole = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return png[:33] + whole + png[33:]


def bomb(size: int) -> bytes:
    return b"k\0\0" + zlib.compress(bytes(size), 9)


def test_sound_pictures_pass(bundle: Bundle) -> None:
    assert picture_file_gate(bundle).verdict == "pass"


@pytest.mark.parametrize("kind", ["EPS", "BMP", "GIF", "text-bomb", "profile", "short", "pixels", "empty"])
def test_a_picture_that_is_no_sound_png_fails(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = bundle.root / bundle.manifest.golden.cases[1].png
    png = path.read_bytes()
    with Image.open(io.BytesIO(png)) as picture:
        picture.load()
    kinds: dict[str, Any] = {
        "text-bomb": lambda: with_chunk(png, b"zTXt", bomb(8 << 20)),
        "profile": lambda: with_chunk(png, b"iCCP", b"no zero byte"),
        "short": lambda: png[:60],
        "pixels": lambda: with_chunk(png[:40], b"IDAT", b"no deflate"),
        "empty": lambda: b"",
    }
    path.write_bytes(kinds[kind]() if kind in kinds else written(picture, kind))

    def started(*_: object, **__: object) -> None:
        pytest.fail("a program was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    found = picture_file_gate(bundle)
    assert found.verdict == "fail"
    assert f"{path.name} is no PNG picture of (16, 16) pixels" in found.sentence
