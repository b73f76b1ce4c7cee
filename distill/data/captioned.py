"""Sources of captioned pictures for a distillation: the embedded stickers or a folder with captions."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Source(Protocol):
    """Draws captioned pictures."""

    def draw(self, count: int, rng: random.Random) -> tuple[torch.Tensor, list[str]]:
        """Return pictures (count, 3, size, size) in [-1, 1] and their captions."""


class EmbeddedSource:
    """The training split of the embedded stickers, scaled to ``size`` pixels."""

    def __init__(self, size: int) -> None:
        from flashbulb.distill.data.stickers import Stickers

        self.size, self.data = size, Stickers()
        self.pool = self.data.select("train")

    def draw(self, count: int, rng: random.Random) -> tuple[torch.Tensor, list[str]]:
        """Return ``count`` stickers on random backgrounds, with varied captions."""
        from torch.nn import functional

        from flashbulb.distill.data.stickers import draw

        stickers, backgrounds = draw(self.pool, count, rng)
        pictures = self.data.composite(stickers, backgrounds)
        if self.size != self.data.size:
            pictures = functional.interpolate(pictures, size=self.size, mode="bicubic", antialias=True).clamp(
                -1, 1
            )
        return pictures, self.data.captions(stickers, backgrounds, rng)


class FolderSource:
    """A folder of pictures and ``metadata.jsonl`` (keys file_name and text), as `datasets` has it."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        file = folder / "metadata.jsonl"
        if not file.is_file():
            raise ValueError(
                f"{folder} has no metadata.jsonl; wanted one JSON object a line: "
                '{"file_name": "picture.png", "text": "its caption"}'
            )
        self.rows = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
        if wrong := [r for r in self.rows if set(r) < {"file_name", "text"}]:
            raise ValueError(f"{file}: wanted the keys file_name and text on every line, got {wrong[0]}")

    def draw(self, count: int, rng: random.Random) -> tuple[torch.Tensor, list[str]]:
        """Return ``count`` pictures, centre-cropped and scaled, with their captions."""
        import numpy as np
        import torch
        from PIL import Image, ImageOps

        rows = rng.choices(self.rows, k=count)
        pictures = [
            ImageOps.fit(Image.open(self.folder / r["file_name"]).convert("RGB"), (self.size, self.size))
            for r in rows
        ]
        stacked = torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2)
        return stacked.float() / 127.5 - 1, [r["text"] for r in rows]


def open_source(name: str, size: int) -> Source:
    """Return the source that ``name`` means: ``embedded`` or a folder."""
    if name == "embedded":
        return EmbeddedSource(size)
    if Path(name).is_dir():
        return FolderSource(Path(name), size)
    raise ValueError(f"wanted data 'embedded' or a folder with metadata.jsonl, got {name!r}")
