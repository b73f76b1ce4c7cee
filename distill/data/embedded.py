"""The embedded stickers as a source: any of them on any background, under a caption that varies."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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

    def draw_each(self, rngs: Sequence[random.Random]) -> tuple[torch.Tensor, list[str]]:
        """Return one sticker for each generator."""
        import torch

        drawn = [self.draw(1, rng) for rng in rngs]
        return torch.cat([pictures for pictures, _ in drawn]), [caption for _, (caption,) in drawn]

    def captions(self, count: int, rng: random.Random) -> list[str]:
        """Return the captions alone that `draw` would return."""
        from flashbulb.distill.data.stickers import draw

        stickers, backgrounds = draw(self.pool, count, rng)
        return self.data.captions(stickers, backgrounds, rng)
