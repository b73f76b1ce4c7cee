"""Prepare one picture: decode a stranger's bytes with care, lay it on white, cut a square, scale it."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from flashbulb.distill.data.base import BadSample

if TYPE_CHECKING:
    import random

    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
"""What is decoded; others (EPS runs a program, PSD and TIFF have many doors) are no pictures here."""
MAX_PIXELS = 89_478_485
"""Largest picture, in pixels: where Pillow begins to warn of decompression bombs; here it is an error."""
MAX_BYTES = 64 * 1024 * 1024
"""Largest encoded picture."""


def prepare(
    data: bytes, size: int, *, crop: Literal["centre", "random"], flip: bool, rng: random.Random
) -> npt.NDArray[np.uint8]:
    """Return a picture (size, size, 3): the largest square, scaled as if the shorter side were ``size``.

    Raises:
        BadSample: when the bytes are no picture, or one too large to open.
    """
    from PIL import Image

    where, mirrored = rng.random(), flip and rng.random() < 0.5
    try:
        picture = on_white(decode(data, size))
    except unreadable() as error:
        raise BadSample(f"no picture that can be opened ({_said(error)})") from error
    box = square(picture.size, 0.5 if crop == "centre" else where)
    cut = picture.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=None)
    pixels = np.asarray(cut)
    return np.ascontiguousarray(pixels[:, ::-1]) if mirrored else pixels


def unreadable() -> tuple[type[Exception], ...]:
    """Return what Pillow raises over bytes that are no picture, or a broken or too large one."""
    from PIL import Image

    wrong = (OSError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError)
    return (*wrong, EOFError, KeyError, IndexError, TypeError, OverflowError)


def decode(data: bytes, size: int) -> Image.Image:
    """Decode a picture that will be scaled to about ``size``, turned as its camera says."""
    from PIL import Image, ImageOps

    if len(data) > MAX_BYTES:
        raise BadSample(f"wanted at most {MAX_BYTES} bytes, got {len(data)}")
    picture = Image.open(io.BytesIO(data), formats=FORMATS)
    if picture.width * picture.height > MAX_PIXELS:
        raise BadSample(
            f"wanted at most {MAX_PIXELS} pixels, got {picture.width} x {picture.height}: "
            "it may be a decompression bomb"
        )
    picture.draft("RGB", (2 * size, 2 * size))  # JPEG decodes at a fraction of its size, still twice ours
    picture.load()
    return ImageOps.exif_transpose(picture)


def on_white(picture: Image.Image) -> Image.Image:
    """Return the picture as 8-bit RGB, what is transparent laid on white."""
    from PIL import Image

    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return picture.convert("RGB")


def square(sides: tuple[int, int], where: float) -> tuple[float, float, float, float]:
    """Return the box of the largest square, at ``where`` (0 to 1) along the longer side."""
    width, height = sides
    side = min(sides)
    left, top = (width - side) * where, (height - side) * where
    return left, top, left + side, top + side


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
