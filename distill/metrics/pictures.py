"""Generated pictures one by one on the disk, with their prompts, as people are asked about them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from flashbulb.distill.metrics.inception import to_bytes

if TYPE_CHECKING:
    import torch

NUMBERED = re.compile(r"\d{5}\.png")


def save_pictures(pictures: torch.Tensor, captions: Sequence[str], folder: Path) -> None:
    """Save pictures (n, 3, h, w) in [-1, 1], or bytes, as numbered PNG files beside a ``metadata.jsonl``.

    The folder is one that captioned training data is read from, too. Numbered pictures of an earlier run are
    removed; other files are left alone.

    Raises:
        ValueError: when there is not one caption a picture.
    """
    from PIL import Image

    if len(pictures) != len(captions):
        raise ValueError(f"wanted one caption a picture, got {len(captions)} for {len(pictures)}")
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if NUMBERED.fullmatch(file.name):
            file.unlink()
    pixels = to_bytes(pictures).permute(0, 2, 3, 1).cpu().numpy()
    lines = []
    for number, (picture, caption) in enumerate(zip(pixels, captions, strict=True)):
        name = f"{number:05}.png"
        Image.fromarray(picture).save(folder / name)
        lines.append(msgspec.json.encode({"file_name": name, "text": caption}))
    (folder / "metadata.jsonl").write_bytes(b"\n".join(lines) + b"\n")
