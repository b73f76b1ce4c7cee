"""Classifier-free guidance under one convention, and its embedding for networks that take it as an input.

Two conventions are in use. diffusers and Imagen (arXiv 2205.11487) write ``null + g (cond - null)``; Meng et
al. (arXiv 2210.03142) and LCM (arXiv 2310.04378) write ``cond + w (cond - null)``. They name the same thing
with ``g = 1 + w``. Here a *scale* is always g; w appears inside the embedding only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

if TYPE_CHECKING:
    import torch

    from flashbulb.distill.loop import StepRng

EMBEDDING_WIDTH = 256
"""Width of the embedding that guided students take, as in diffusers' LCM checkpoints."""


class ScaleRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Guidance scales g that a student is trained for; drawn evenly."""

    low: Annotated[float, msgspec.Meta(ge=1)] = 1.0
    high: Annotated[float, msgspec.Meta(ge=1)] = 5.0

    def __post_init__(self) -> None:
        if self.high < self.low:
            raise ValueError(f"wanted low <= high, got {self.low} and {self.high}")

    def draw(self, count: int, rng: StepRng) -> torch.Tensor:
        """Return scales (b,)."""
        import torch

        return self.low + (self.high - self.low) * torch.rand(count, generator=rng.torch)


def embed_scale(scale: torch.Tensor, width: int) -> torch.Tensor:
    """Return the embedding (b, width) of scales g (b,): sines and cosines of ``1000 w``, with ``w = g - 1``.

    Equal to diffusers' ``get_guidance_scale_embedding(g - 1, width)``.
    """
    import torch

    half = width // 2
    frequencies = torch.exp(-torch.arange(half) * (torch.log(torch.tensor(10000.0)) / (half - 1)))
    angles = 1000 * (scale.float() - 1)[:, None] * frequencies
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], 1), (0, width % 2))
