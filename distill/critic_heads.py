"""The trained heads of ADD's critic: each reads one frozen feature map and gives a logit a place.

Both kinds follow StyleGAN-T (arXiv 2301.09515, section 3.2): spectrally normalised convolutions (arXiv
1802.05957), one residual over nine neighbours with circular padding, then a projection on the condition
(arXiv 1802.05637). They differ in what a neighbour is and in the normalisation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import nn

HeadKind = Literal["map", "tokens"]

PROJECTED = 64
"""Channels that meet the condition."""
VIRTUAL_BATCH = 8


def make_head(kind: HeadKind, channels: int, condition_width: int) -> nn.Module:
    """Make one head.

    ``read(map (b, c, h, w))`` gives what it makes of the map, (b, 64, n); ``project(read, condition (b, d))``
    gives the logits (b, n).
    """
    from torch import nn

    inner, outer = (_map_layers if kind == "map" else _token_layers)(channels)

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inward, self.residual, self.outward = *inner, outer
            self.condition = nn.Linear(condition_width, PROJECTED)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            hidden = self.inward(features if kind == "map" else features.flatten(2))
            read: torch.Tensor = self.outward((hidden + self.residual(hidden)) / 2**0.5)
            return read.flatten(2)

        def project(self, read: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            told = self.condition(condition)[:, :, None]
            logits: torch.Tensor = (read * told).sum(1) / PROJECTED**0.5
            return logits

    return Head()


def _map_layers(channels: int) -> tuple[tuple[nn.Module, nn.Module], nn.Module]:
    """Return layers over 3 x 3 neighbours of a map, narrow from the start: for small networks and maps."""
    from torch import nn
    from torch.nn.utils.parametrizations import spectral_norm

    width = PROJECTED
    return (
        nn.Sequential(
            spectral_norm(nn.Conv2d(channels, width, 1)), nn.GroupNorm(8, width), nn.LeakyReLU(0.2)
        ),
        nn.Sequential(
            spectral_norm(nn.Conv2d(width, width, 3, padding=1, padding_mode="circular")),
            nn.GroupNorm(8, width),
            nn.LeakyReLU(0.2),
        ),
    ), spectral_norm(nn.Conv2d(width, width, 1))


def _token_layers(channels: int) -> tuple[tuple[nn.Module, nn.Module], nn.Module]:
    """Return layers over nine tokens in a row, as wide as the features: the published heads."""
    from torch import nn
    from torch.nn.utils.parametrizations import spectral_norm

    return (
        nn.Sequential(
            spectral_norm(nn.Conv1d(channels, channels, 1)), local_norm(channels), nn.LeakyReLU(0.2)
        ),
        nn.Sequential(
            spectral_norm(nn.Conv1d(channels, channels, 9, padding=4, padding_mode="circular")),
            local_norm(channels),
            nn.LeakyReLU(0.2),
        ),
    ), spectral_norm(nn.Conv1d(channels, PROJECTED, 1))


def local_norm(channels: int) -> nn.Module:
    """Make a batch normalisation over small virtual batches, alike in training and evaluation.

    A batch (b, c, n) falls into the fewest equal parts of at most eight pictures, whatever b is.
    """
    import torch
    from torch import nn

    class LocalNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            parts = x.unflatten(0, (virtual_batches(len(x)), -1))
            mean = parts.mean((1, 3), keepdim=True)
            spread = parts.var((1, 3), keepdim=True, unbiased=False)
            scaled = ((parts - mean) / (spread + 1e-5).sqrt()).flatten(0, 1)
            normed: torch.Tensor = scaled * self.weight[:, None] + self.bias[:, None]
            return normed

    return LocalNorm()


def virtual_batches(count: int) -> int:
    """Return into how many equal parts of at most eight a batch falls: as few as divide it."""
    return next(
        parts for parts in range(1, count + 1) if count % parts == 0 and count // parts <= VIRTUAL_BATCH
    )
