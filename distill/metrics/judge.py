"""The embedded judge: how well pictures match their captions, by a network that no training ever sees.

A picture of concept c is right when, among the prototypes of the 148 iconic concepts (mean judge feature of
all real drawings of a concept), c's is the nearest: retrieval R@1, the sticker world's analogue of the CLIP
score. The background is right when the median border colour is nearest to the named one. Real pictures do not
reach 1 either; their own figure, with a picture's own style left out of the prototype, is the honest ceiling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from flashbulb.distill.data.words import BACKGROUNDS, ICONIC, STYLES

if TYPE_CHECKING:
    import torch

    from flashbulb.distill.data.stickers import Sticker, Stickers

Features = npt.NDArray[np.float32]
INPUT_SIZE = 128


class Alignment(msgspec.Struct, frozen=True, kw_only=True):
    """Alignment of pictures with their captions; every field is a share in 0..1."""

    retrieval_at_1: float
    retrieval_at_10: float
    background: float
    pictures: int


class Judge:
    """Judge features (EfficientNet-Lite2, ImageNet) and the prototypes of the iconic concepts."""

    def __init__(self, data: Stickers) -> None:
        from flashbulb.distill.features import efficientnet

        self.network = efficientnet("lite2")
        wanted = set(ICONIC)
        self.reference = [s for s in data.items if s.concept in wanted]
        pictures = data.composite(self.reference, ["white"] * len(self.reference))
        raw = self.raw_features(pictures)
        self.mean, self.std = raw.mean(0), raw.std(0) + 1e-3
        self.real = self._normal(raw)
        self.sums = np.stack(
            [self.real[[i for i, s in enumerate(self.reference) if s.concept == c]].sum(0) for c in ICONIC]
        )
        self.index = {concept: i for i, concept in enumerate(ICONIC)}

    def raw_features(self, pictures: torch.Tensor) -> Features:
        """Return pooled features (n, 1280) of pictures (n, 3, h, w) in [-1, 1]."""
        import torch

        from flashbulb.distill.features import pooled, to_network

        with torch.inference_mode():
            parts = [pooled(self.network, to_network(p, INPUT_SIZE)) for p in pictures.float().split(64)]
        return torch.cat(parts).numpy()

    def _normal(self, raw: Features) -> Features:
        scaled = (raw - self.mean) / self.std
        return (scaled / np.linalg.norm(scaled, axis=1, keepdims=True)).astype(np.float32)

    def alignment(self, pictures: torch.Tensor, concepts: list[str], backgrounds: list[str]) -> Alignment:
        """Judge pictures (n, 3, h, w) in [-1, 1] of iconic concepts against what was asked for."""
        scores = self._normal(self.raw_features(pictures)) @ _unit(self.sums).T
        return self._record(scores, pictures, concepts, backgrounds)

    def ceiling(self, data: Stickers, stickers: list[Sticker], backgrounds: list[str]) -> Alignment:
        """Judge real pictures, each against prototypes that its own style is left out of."""
        pictures = data.composite(stickers, backgrounds)
        features = self._normal(self.raw_features(pictures))
        scores = np.empty((len(stickers), len(ICONIC)), np.float32)
        for style in STYLES:
            own = [i for i, s in enumerate(self.reference) if s.style == style]
            sums = self.sums.copy()
            for i in own:
                sums[self.index[self.reference[i].concept]] -= self.real[i]
            rows = [i for i, s in enumerate(stickers) if s.style == style]
            scores[rows] = features[rows] @ _unit(sums).T
        return self._record(scores, pictures, [s.concept for s in stickers], backgrounds)

    def _record(
        self, scores: Features, pictures: torch.Tensor, concepts: list[str], backgrounds: list[str]
    ) -> Alignment:
        wanted = np.array([self.index[c] for c in concepts])
        rank = (scores > scores[np.arange(len(wanted)), wanted][:, None]).sum(1)
        right = [a == b for a, b in zip(background_of(pictures), backgrounds, strict=True)]
        return Alignment(
            retrieval_at_1=float((rank < 1).mean()),
            retrieval_at_10=float((rank < 10).mean()),
            background=float(np.mean(right)),
            pictures=len(concepts),
        )


def _unit(vectors: Features) -> Features:
    return vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-8)


def background_of(pictures: torch.Tensor) -> list[str]:
    """Return the nearest named background of each picture (n, 3, h, w), by its two outermost pixels."""
    values = ((pictures.float().numpy() + 1) * 127.5).transpose(0, 2, 3, 1)
    border = np.ones(values.shape[1:3], bool)
    border[2:-2, 2:-2] = False
    colours = np.median(values[:, border], axis=1)
    names = list(BACKGROUNDS)
    distance = np.linalg.norm(colours[:, None] - np.array([BACKGROUNDS[n] for n in names])[None], axis=-1)
    return [names[i] for i in distance.argmin(1)]
