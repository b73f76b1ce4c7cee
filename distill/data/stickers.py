"""The embedded sticker data as tensors: pictures composited on a named background, with captions."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from flashbulb.distill.data.words import BACKGROUNDS, ICONIC, caption

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

Split = Literal["train", "combination", "unseen"]
DEFAULT = Path(__file__).parents[1] / "assets" / "stickers.parquet"


class Sticker(msgspec.Struct, frozen=True, kw_only=True):
    """One drawing and, once composited, its background."""

    index: int
    concept: str
    style: str
    split: Split


class Stickers:
    """All stickers of one file, decoded once into memory (64 px: 60 MB)."""

    def __init__(self, path: Path = DEFAULT) -> None:
        import pyarrow.parquet as pq
        from PIL import Image

        rows = pq.read_table(path).to_pylist()
        self.items = [
            Sticker(index=i, concept=r["concept"], style=r["style"], split=r["split"])
            for i, r in enumerate(rows)
        ]
        self.rgba: npt.NDArray[np.uint8] = np.stack(
            [np.asarray(Image.open(io.BytesIO(r["image"])).convert("RGBA")) for r in rows]
        )

    @property
    def size(self) -> int:
        """Pixels of one side."""
        return int(self.rgba.shape[1])

    def select(self, split: Split, *, iconic: bool = False) -> list[Sticker]:
        """Return the stickers of one split, all of them or the iconic concepts only."""
        wanted = set(ICONIC)
        return [s for s in self.items if s.split == split and (not iconic or s.concept in wanted)]

    def composite(self, stickers: list[Sticker], backgrounds: list[str]) -> torch.Tensor:
        """Return pictures, float32 (b, 3, h, w) in [-1, 1], of stickers laid on named backgrounds."""
        import torch

        rgba = self.rgba[[s.index for s in stickers]].astype(np.float32) / 255
        ground = np.array([BACKGROUNDS[b] for b in backgrounds], np.float32)[:, None, None] / 255
        alpha = rgba[..., 3:]
        pictures = rgba[..., :3] * alpha + ground * (1 - alpha)
        return torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))) * 2 - 1

    def captions(
        self, stickers: list[Sticker], backgrounds: list[str], rng: random.Random | None = None
    ) -> list[str]:
        """Return one caption for each picture: canonical, or with ``rng`` varied."""
        return [caption(s.concept, s.style, b, rng) for s, b in zip(stickers, backgrounds, strict=True)]


def draw(pool: list[Sticker], batch: int, rng: random.Random) -> tuple[list[Sticker], list[str]]:
    """Draw ``batch`` stickers with replacement, each with a background colour."""
    return rng.choices(pool, k=batch), rng.choices(list(BACKGROUNDS), k=batch)


def draw_each(pool: list[Sticker], rngs: Sequence[random.Random]) -> tuple[list[Sticker], list[str]]:
    """Draw one sticker with a background colour from each generator."""
    return [rng.choice(pool) for rng in rngs], [rng.choice(list(BACKGROUNDS)) for rng in rngs]
