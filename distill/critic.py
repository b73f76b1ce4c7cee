"""The adversarial critic of ADD: light heads on frozen features (arXiv 2311.17042, section 3.2).

The feature network never trains; each head sees one feature map, reads it with spectrally normalised
convolutions and compares it with the text by projection (arXiv 1802.05637). R1 is taken at the *input of the
heads*.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from flashbulb.distill.augment import Change, Changes, augment, draw_changes
from flashbulb.distill.critic_heads import HeadKind, make_head

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import torch

    from flashbulb.distill.rng import StepRng


class CriticConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the critic looks through, and what it is told."""

    features: str = "lite0"
    """``lite0``, or a Hub id or folder of a vision transformer (DINO, DINOv2, CLIP)."""
    input_size: Annotated[int, msgspec.Meta(ge=32)] | None = None
    """Pixels of the features' input; default: 96 for ``lite0``, 224 for a transformer."""
    image_features: str = ""
    """A second network for the vector of the real picture, named as ``features`` (the paper takes DINOv2
    ViT-L); default: the network of the maps."""
    heads: HeadKind = "map"
    """What reads a feature map: ``map`` looks at 3 x 3 neighbours with 64 channels; ``tokens`` at nine tokens
    in a row with all channels, as published with StyleGAN-T."""
    places: Annotated[int, msgspec.Meta(ge=0)] = 64
    """Logits that a head gives for a picture: more places are averaged to so many before the loss, and fewer
    repeated to so many, so that heads weigh alike; 0 keeps one logit a place."""
    reduction: Literal["mean", "sum"] = "mean"
    """How the losses of the heads become one: their mean, or their sum as the paper writes it. Over pictures
    and places it is always the mean."""
    augment: tuple[Change, ...] = ()
    """Changes that real and drawn pictures go through alike (DiffAug): color, translation, cutout, crop."""
    condition: Literal["none", "text", "image", "both"] = "text"
    """What the logits are projected on (table 1 b): nothing, the caption, the real picture, or both."""
    scale: Literal["raw", "unit"] = "unit"
    """How long the vectors are that are told: ``unit`` makes the text's and the picture's alike, of mean
    square 1; ``raw`` leaves the pooled text as long as it is beside a picture's vector of length 1, so that
    of ``both`` hardly more than the text is heard."""
    image_at_terminal: Literal["null", "keep"] = "null"
    """Whether the picture's vector stays where the student saw none of it: pure noise."""
    r1: Literal["head", "pixel"] = "head"
    """Where the gradient penalty is taken: at the inputs of the heads, or at the pixels."""


class Critic:
    """Frozen features F and trainable heads D_k."""

    def __init__(self, text_width: int, config: CriticConfig = CriticConfig()) -> None:  # noqa: B008
        from torch import nn

        from flashbulb.distill.critic_features import open_features

        self.config = config
        self.frozen = open_features(config.features, config.input_size, twice=config.r1 == "pixel")
        told = {"none": (), "both": ("text", "image")}.get(config.condition, (config.condition,))
        self.told: tuple[str, ...] = told
        second = config.image_features if "image" in told else ""
        self.witness = open_features(second, None) if second else self.frozen
        widths = {"text": text_width, "image": self.witness.summary_width}
        width = sum(widths[name] for name in told) or 1
        self.heads = nn.ModuleList(make_head(config.heads, w, width) for w in self.frozen.widths)

    def to(self, device: torch.device) -> Critic:
        """Move heads and frozen features to a device."""
        self.heads.to(device)
        self.frozen.network.to(device)
        self.witness.network.to(device)
        return self

    def draw_changes(self, count: int, rng: StepRng) -> Changes | None:
        """Draw the augmentation of ``count`` pictures, the real ones' and the drawn ones' alike."""
        return draw_changes(self.config.augment, count, rng)

    def features(self, pictures: torch.Tensor, changes: Changes | None = None) -> list[torch.Tensor]:
        """Return the frozen maps of pictures (b, 3, h, w) in [-1, 1]; gradients reach the pictures."""
        return self.frozen.maps(augment(pictures, changes, self.frozen.size))

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

        parts = [self._scaled(text)] if "text" in self.told else []
        if "image" in self.told:
            if pictures is None:
                raise ValueError(f"condition {self.config.condition!r} wants real pictures, got none")
            image = self._scaled(self.witness.summary(pictures))
            lost = terminal & (self.config.image_at_terminal == "null")
            parts.append(torch.where(lost[:, None], 0.0, image))
        return torch.cat(parts, 1) if parts else text.new_ones(len(text), 1)

    def _scaled(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return vectors (b, d) at the length of the configuration: sqrt(d), or their own."""
        import torch

        if self.config.scale == "raw":
            return vectors
        return torch.nn.functional.normalize(vectors, dim=1) * vectors.shape[1] ** 0.5

    def read(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return what the heads make of feature maps before any condition; one reading serves several."""
        return [head(f) for head, f in zip(self.heads, features, strict=True)]

    def project(self, read: list[torch.Tensor], condition: torch.Tensor) -> list[torch.Tensor]:
        """Return the logits (b, n_k) of each head."""
        heads: list[Any] = list(self.heads)
        parts = [head.project(r, condition) for head, r in zip(heads, read, strict=True)]
        return [_to_places(p, self.config.places) for p in parts] if self.config.places else parts

    def logits(self, features: list[torch.Tensor], condition: torch.Tensor) -> list[torch.Tensor]:
        """Return the logits (b, n_k) of each head for pictures with these features and conditions (b, d)."""
        return self.project(self.read(features), condition)

    def reduce(self, losses: Iterable[torch.Tensor]) -> torch.Tensor:
        """Return one loss from those of each head, (b, n_k): mean within a head, ``reduction`` over heads."""
        import torch

        heads = torch.stack([loss.mean() for loss in losses])
        return heads.sum() if self.config.reduction == "sum" else heads.mean()

    @contextlib.contextmanager
    def only_read(self) -> Iterator[None]:
        """Hold the heads still: no gradient for them, and no step of their spectral norms."""
        self.heads.requires_grad_(False).eval()
        try:
            yield
        finally:
            self.heads.requires_grad_(True).train()


def _to_places(logits: torch.Tensor, places: int) -> torch.Tensor:
    import torch

    return torch.nn.functional.adaptive_avg_pool1d(logits[:, None], places)[:, 0]


def hinge(logits: Iterable[torch.Tensor], sign: int) -> list[torch.Tensor]:
    """Return the hinge losses (b, n_k) of each head (eq. 3 of 2311.17042): ``max(0, 1 - sign D)``.

    Args:
        logits: those of each head.
        sign: 1 for pictures that are to be taken for real, -1 for the others.
    """
    return [(1 - sign * part).relu() for part in logits]


def neighbours(rows: torch.Tensor) -> torch.Tensor:
    """Return rows (b, d) with each in the place of the one beside it, as a batch in parts has them too.

    Partners are (0, 1), (2, 3), ...; the last of an odd number takes the first row.
    """
    import torch

    order = torch.arange(len(rows), device=rows.device) ^ 1
    return rows[torch.where(order < len(rows), order, 0)]


def mismatched(condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give each picture the condition of its neighbour, and tell where that is a wrong one.

    It is none where both are told the same, and none where the neighbour is told nothing: a picture of
    pure noise may itself be told nothing, and be right.

    Returns:
        the conditions (b, d), and 1 where they are wrong, otherwise 0, (b, 1).
    """
    other = neighbours(condition)
    wrong = (other != condition).any(1) & other.any(1)
    return other, wrong[:, None].to(condition)


def r1(logits: list[torch.Tensor], inputs: list[torch.Tensor]) -> torch.Tensor:
    """Return R1 (arXiv 1801.04406): the batch mean of the squared gradient of the logits at their inputs.

    A picture's logits are summed over places and heads, and its squared gradient over all of its inputs.

    Args:
        logits: those of each head.
        inputs: the maps that the heads saw (or the pixels); they must have required gradients before.
    """
    import torch

    total = torch.stack([part.sum() for part in logits]).sum()
    gradients = torch.autograd.grad(total, inputs, create_graph=True)
    return torch.stack([g.square().sum((1, 2, 3)).mean() for g in gradients]).sum()
