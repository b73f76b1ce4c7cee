"""One picture that shows what was expected, what came, and their difference eight times enlarged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
GAIN = 8.0
"""Factor of the shown difference: one that the eye would miss is seen."""
LEAST_SIDE = 192
"""Smaller pictures are enlarged by a whole factor to about this many pixels."""
MARGIN, HEADING = 8, 18
NOT_FINITE = (1.0, 0.0, 1.0)
"""Colour of pixels that are NaN or infinite: one that no difference has by accident."""


def difference(expected: Array, got: Array, gain: float = GAIN) -> Array:
    """Return ``gain * |got - expected|`` in [0, 1], shape (height, width, 3); not finite is magenta."""
    return paint(np.abs(got.astype(np.float64) - expected.astype(np.float64)) * gain)


def paint(image: Array) -> Array:
    """Clip a picture (height, width, 3) to [0, 1] and make pixels that are not finite magenta."""
    bad = ~np.isfinite(image).all(axis=-1, keepdims=True)
    return np.where(bad, NOT_FINITE, np.clip(np.nan_to_num(image), 0.0, 1.0))


def save_diff(expected: Array, got: Array, path: Path) -> Path:
    """Write the three pictures side by side as a PNG.

    Args:
        expected: the reference, (height, width, 3) in [0, 1].
        got: what came, same shape, any values.
        path: file to write; its folder is made.
    """
    from PIL import Image, ImageDraw

    panels = (
        ("expected", paint(expected)),
        ("got", paint(got)),
        (f"difference x{GAIN:g}", difference(expected, got)),
    )
    height, width, _ = expected.shape
    factor = max(1, -(-LEAST_SIDE // max(height, width)))
    height, width = height * factor, width * factor
    size = (3 * width + 4 * MARGIN, height + HEADING + 2 * MARGIN)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for index, (title, image) in enumerate(panels):
        left = MARGIN + index * (width + MARGIN)
        pen.text((left, MARGIN), title, fill="black")
        pixels = (image.repeat(factor, axis=0).repeat(factor, axis=1) * 255.0 + 0.5).astype(np.uint8)
        sheet.paste(Image.fromarray(pixels), (left, MARGIN + HEADING))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")
    return path


def file_name(*words: str) -> str:
    """Join words into a file name that every system takes."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", "-".join(w for w in words if w))[:120] + ".png"
