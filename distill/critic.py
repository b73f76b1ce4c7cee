"""The adversarial critic of ADD: light heads on frozen features (arXiv 2311.17042, section 3.2).

The feature network never trains; each head sees one feature map, reads it with spectrally normalised
convolutions and compares it with the text by projection (arXiv 1802.05637). R1 is taken at the *input of the
heads*.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

if TYPE_CHECKING:
    import torch
    from torch import nn


class CriticConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the critic looks through, and what it is told."""

    features: str = "lite0"
    """``lite0``, or a Hub id or folder of a vision transformer (DINO, DINOv2, CLIP)."""
    input_size: Annotated[int, msgspec.Meta(ge=32)] | None = None
    """Pixels of the features' input; default: 96 for ``lite0``, 224 for a transformer."""
    condition: Literal["none", "text", "image", "both"] = "text"
    """What the logits are projected on (table 1 b): nothing, the caption, the real picture, or both."""
    image_at_terminal: Literal["null", "keep"] = "null"
    """Whether the picture's vector stays where the student saw none of it: pure noise."""
    r1: Literal["head", "pixel"] = "head"
    """Where the gradient penalty is taken: at the inputs of the heads, or at the pixels."""


def make_head(channels: int, condition_width: int, width: int = 64) -> nn.Module:
    """Make one head: it reads a map (b, c, h, w), then projects it on a condition (b, d): (b, h, w)."""
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
            self.condition = nn.Linear(condition_width, width)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            hidden = self.inward(features)
            read: torch.Tensor = self.outward((hidden + self.residual(hidden)) / 2**0.5)
            return read

        def project(self, read: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = (read * self.condition(condition)[:, :, None, None]).sum(1) / width**0.5
            return logits

    return Head()


class Critic:
    """Frozen features F and trainable heads D_k; the logits are all heads' side by side, (b, n)."""

    def __init__(self, text_width: int, config: CriticConfig = CriticConfig()) -> None:  # noqa: B008
        from torch import nn

        from flashbulb.distill.critic_features import open_features

        self.config, self.frozen = config, open_features(config.features, config.input_size)
        widths = {"text": text_width, "image": self.frozen.summary_width}
        told = {"none": (), "both": ("text", "image")}.get(config.condition, (config.condition,))
        self.told: tuple[str, ...] = told
        width = sum(widths[name] for name in told) or 1
        self.heads = nn.ModuleList(make_head(w, width) for w in self.frozen.widths)

    def to(self, device: torch.device) -> Critic:
        """Move heads and frozen features to a device."""
        self.heads.to(device)
        self.frozen.network.to(device)
        return self

    def features(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """Return the frozen maps of pictures (b, 3, h, w) in [-1, 1]; gradients reach the pictures."""
        return self.frozen.maps(pictures)

    def condition(
        self, text: torch.Tensor, pictures: torch.Tensor | None, terminal: torch.Tensor
    ) -> torch.Tensor:
        """Return what the logits are projected on, (b, d).

        Args:
            text: pooled text (b, d).
            pictures: the real pictures that the student's input came from; read for ``image`` and ``both``.
            terminal: (b,), whether that input was pure noise.
        """
        import torch

        parts = [text] if "text" in self.told else []
        if "image" in self.told:
            if pictures is None:
                raise ValueError(f"condition {self.config.condition!r} wants real pictures, got none")
            image = self.frozen.summary(pictures)
            lost = terminal & (self.config.image_at_terminal == "null")
            parts.append(torch.where(lost[:, None], 0.0, image))
        return torch.cat(parts, 1) if parts else text.new_ones(len(text), 1)

    def read(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return what the heads make of feature maps before any condition; one reading serves several."""
        return [head(f) for head, f in zip(self.heads, features, strict=True)]

    def project(self, read: list[torch.Tensor], condition: torch.Tensor) -> torch.Tensor:
        """Return the logits (b, n) of all heads; each head's are weighted equally whatever its resolution."""
        import torch

        heads: list[Any] = list(self.heads)
        parts = [head.project(r, condition).flatten(1) for head, r in zip(heads, read, strict=True)]
        return torch.cat([torch.nn.functional.adaptive_avg_pool1d(p[:, None], 64)[:, 0] for p in parts], 1)

    def logits(self, features: list[torch.Tensor], condition: torch.Tensor) -> torch.Tensor:
        """Return the logits (b, n) of pictures with these features under their conditions (b, d)."""
        return self.project(self.read(features), condition)


def hinge_critic(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Return the critic's hinge loss of logits (eq. 3 of 2311.17042 without R1)."""
    return (1 - real).relu().mean() + (1 + fake).relu().mean()


def neighbours(rows: torch.Tensor) -> torch.Tensor:
    """Return rows (b, d) with each in the place of the one beside it, as a batch in parts has them too.

    Partners are (0, 1), (2, 3), ...; the last of an odd number takes the first row.
    """
    import torch

    order = torch.arange(len(rows), device=rows.device) ^ 1
    return rows[torch.where(order < len(rows), order, 0)]


def r1(logits: torch.Tensor, inputs: list[torch.Tensor]) -> torch.Tensor:
    """Return R1 (arXiv 1801.04406): the batch mean of the squared gradient of the logits at their inputs.

    ``inputs`` are the maps that the heads saw (or the pixels), and must have required gradients before.
    """
    import torch

    gradients = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return torch.stack([g.square().sum((1, 2, 3)).mean() for g in gradients]).sum()
