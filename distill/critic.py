"""The adversarial critic of ADD: light heads on frozen features (arXiv 2311.17042, section 3.2).

The feature network never trains; each head sees one feature map, reads it with spectrally normalised
convolutions and compares it with the text by projection (arXiv 1802.05637). R1 is taken at the *input of the
heads*.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

BLOCKS = (2, 4, 10)
"""EfficientNet-Lite0 blocks whose outputs the heads read: strides 4, 8, 16."""


def make_head(channels: int, text_width: int, width: int = 64) -> nn.Module:
    """Make one head: ``read`` a feature map (b, c, h, w), then ``project`` it on a text (b, d): (b, h, w)."""
    from torch import nn
    from torch.nn.utils.parametrizations import spectral_norm

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inward = nn.Sequential(
                spectral_norm(nn.Conv2d(channels, width, 1)), nn.GroupNorm(8, width), nn.LeakyReLU(0.2)
            )
            self.residual = nn.Sequential(
                spectral_norm(nn.Conv2d(width, width, 3, padding=1, padding_mode="circular")),
                nn.GroupNorm(8, width),
                nn.LeakyReLU(0.2),
            )
            self.outward = spectral_norm(nn.Conv2d(width, width, 1))
            self.text = nn.Linear(text_width, width)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            hidden = self.inward(features)
            read: torch.Tensor = self.outward((hidden + self.residual(hidden)) / 2**0.5)
            return read

        def project(self, read: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = (read * self.text(text)[:, :, None, None]).sum(1) / width**0.5
            return logits

    return Head()


class Critic:
    """Frozen features F and trainable heads D_k; call it for the logits, all heads' side by side (b, n)."""

    def __init__(self, text_width: int, *, blocks: tuple[int, ...] = BLOCKS, input_size: int = 96) -> None:
        import torch
        from torch import nn

        from flashbulb.distill.features import efficientnet, feature_maps

        self.network, self.blocks, self.input_size = efficientnet("lite0"), blocks, input_size
        with torch.no_grad():
            maps = feature_maps(self.network, torch.zeros(1, 3, input_size, input_size), blocks)
        self.heads = nn.ModuleList(make_head(m.shape[1], text_width) for m in maps)

    def features(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """Return the frozen maps of pictures (b, 3, h, w) in [-1, 1]; gradients reach the pictures."""
        import torch

        from flashbulb.distill.features import feature_maps, to_network

        with torch.autocast("cpu", torch.bfloat16, enabled=pictures.device.type == "cpu"):
            maps = feature_maps(self.network, to_network(pictures, self.input_size), self.blocks)
        return [m.float() for m in maps]

    def read(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return what the heads make of feature maps before they see a text; one reading serves several."""
        return [head(f) for head, f in zip(self.heads, features, strict=True)]

    def project(self, read: list[torch.Tensor], text: torch.Tensor) -> torch.Tensor:
        """Return the logits (b, n) of all heads; each head's are weighted equally whatever its resolution."""
        import torch

        heads: list[Any] = list(self.heads)
        parts = [head.project(r, text).flatten(1) for head, r in zip(heads, read, strict=True)]
        return torch.cat([torch.nn.functional.adaptive_avg_pool1d(p[:, None], 64)[:, 0] for p in parts], 1)

    def logits(self, features: list[torch.Tensor], text: torch.Tensor) -> torch.Tensor:
        """Return the logits (b, n) of pictures with these features for their texts (b, d)."""
        return self.project(self.read(features), text)


def hinge_critic(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Return the critic's hinge loss of logits (eq. 3 of 2311.17042 without R1)."""
    return (1 - real).relu().mean() + (1 + fake).relu().mean()


def r1(logits: torch.Tensor, features: list[torch.Tensor]) -> torch.Tensor:
    """Return R1 (arXiv 1801.04406) at the head inputs: the batch mean of the squared gradient.

    ``features`` must have required gradients before the heads saw them.
    """
    import torch

    gradients = torch.autograd.grad(logits.sum(), features, create_graph=True)
    return torch.stack([g.square().sum((1, 2, 3)).mean() for g in gradients]).sum()
