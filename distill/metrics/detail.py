"""Figures of the pictures themselves: blur, fine detail, and variety within a caption."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float64]


def sharpness(pictures: torch.Tensor) -> Floats:
    """Return the mean squared Laplacian of each picture (n, 3, h, w): falls when it is blurred."""
    import torch

    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).expand(3, 1, 3, 3)
    found = torch.nn.functional.conv2d(pictures.float(), kernel, groups=3).square().mean((1, 2, 3))
    return found.double().numpy()


def high_frequency_ratio(pictures: torch.Tensor, cutoff: float = 0.25) -> Floats:
    """Return the share of each picture's energy above ``cutoff`` cycles a pixel, its mean left out.

    Unlike the Laplacian it does not grow with contrast. A constant picture has 0.

    Args:
        pictures: (n, 3, h, w).
        cutoff: distance from the zero frequency; 0.5 is the finest that a row can hold.
    """
    import torch

    height, width = pictures.shape[-2:]
    power = torch.fft.fft2(pictures.double()).abs().square().sum(1)
    power[:, 0, 0] = 0
    distance = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
    high, total = power[:, distance > cutoff].sum(1), power.sum((1, 2))
    return torch.where(total > 1e-9, high / total.clamp_min(1e-9), 0.0).numpy()


def diversity(features: npt.NDArray[np.float32], captions: list[str]) -> Floats:
    """Return per caption the mean cosine distance between features (n, d) of the pictures that share it.

    Raises:
        ValueError: when no caption has two pictures.
    """
    unit = features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-8)
    values = []
    for caption in dict.fromkeys(captions):
        rows = unit[[i for i, c in enumerate(captions) if c == caption]]
        if len(rows) > 1:
            upper = np.triu_indices(len(rows), 1)
            values.append(float(1 - (rows @ rows.T)[upper].mean()))
    if not values:
        raise ValueError("wanted at least two pictures of some caption, got none")
    return np.array(values)
