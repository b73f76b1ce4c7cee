"""Pictures that nobody drew, judged like drawn ones: what the figures can see, and what bounds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from flashbulb.distill.checkpoint import Checkpoint

BLUR_PIXELS = {"": 0.0, ", blurred a little": 0.5, ", blurred": 0.8}
"""How a reference is named -> standard deviation of the Gaussian that it is blurred with."""
REAL, DECODED = "real pictures", "through the autoencoder"
REFERENCES = tuple(f"{what}{how}" for what in (REAL, DECODED) for how in BLUR_PIXELS)


def seen(name: str, real: torch.Tensor, checkpoint: Checkpoint) -> torch.Tensor:
    """Return a reference's pictures.

    Args:
        name: one of `REFERENCES`.
        real: real pictures (n, 3, h, w) in [-1, 1].
        checkpoint: whose autoencoder they may pass through.
    """
    import torch
    from scipy.ndimage import gaussian_filter

    what, comma, how = name.partition(",")
    pictures = real
    if what == DECODED:
        vae = checkpoint.load("vae")
        with torch.inference_mode():
            latents = vae.encode(real).latent_dist.mode()  # type: ignore[operator]
            pictures = vae.decode(latents).sample.clamp(-1, 1)  # type: ignore[operator]
    width = BLUR_PIXELS[comma + how]
    return torch.from_numpy(gaussian_filter(pictures.numpy(), (0, 0, width, width), mode="nearest"))
