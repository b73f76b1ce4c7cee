"""The embedded judge: how well pictures match their captions, by a network that no training ever sees.

A picture of concept c is right when, among the prototypes of the 148 iconic concepts (mean judge feature of
all real drawings of a concept), c's is the nearest: retrieval R@1, the sticker world's analogue of the CLIP
score. Its style is right when it departs from its concept's mean drawing most in the direction in which the
drawings of the named style depart from those of all other concepts. ImageNet features tell styles badly
apart, so read that figure beside the real pictures' own, and base no decision on it. The background is right
when the median border colour is nearest to the named one. Real pictures do not reach 1 either; their own
figure, with a picture's own style left out of its concept's prototype, is the honest ceiling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from flashbulb.distill.data.words import BACKGROUNDS, ICONIC, STYLES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from flashbulb.distill.data.stickers import Sticker, Stickers

Features = npt.NDArray[np.float32]
Outcomes = dict[str, npt.NDArray[np.bool_]]
INPUT_SIZE = 128


class Eyes:
    """The judge's network, EfficientNet-Lite2 of ImageNet: good for pictures of any world."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        from flashbulb.distill.features import efficientnet

        self.network, self.device = efficientnet("lite2").to(device), device

    def __call__(self, pictures: torch.Tensor) -> Features:
        """Return pooled features (n, 1280) of pictures (n, 3, h, w) in [-1, 1]."""
        import torch

        from flashbulb.distill.features import pooled, to_network

        found = []
        with torch.inference_mode():
            for part in pictures.split(64):
                inputs = to_network(part.to(self.device).float(), INPUT_SIZE)
                found.append(pooled(self.network, inputs).cpu())
        return torch.cat(found).numpy()


class Judge:
    """Prototypes of the iconic concepts and of the styles, from real drawings on white."""

    def __init__(self, data: Stickers, eyes: Eyes) -> None:
        wanted = set(ICONIC)
        reference = [s for s in data.items if s.concept in wanted]
        raw = eyes(data.composite(reference, ["white"] * len(reference)))
        self.mean, self.std = raw.mean(0), raw.std(0) + 1e-3
        self.concept = {name: i for i, name in enumerate(ICONIC)}
        self.style = {name: i for i, name in enumerate(STYLES)}
        self.sums = np.zeros((len(ICONIC), len(STYLES), raw.shape[1]), np.float32)
        """Sum of the features of the drawings of each concept in each style."""
        drawings = np.zeros((len(ICONIC), len(STYLES), 1), np.float32)
        for sticker, feature in zip(reference, self._normal(raw), strict=True):
            row = self.concept[sticker.concept], self.style[sticker.style]
            self.sums[row] += feature
            drawings[row] += 1
        self.centres = self.sums.sum(1) / drawings.sum(1)
        """Mean feature of the drawings of each concept."""
        self.departures = self.sums - drawings * self.centres[:, None]
        """Sum of how the drawings of each concept in each style differ from the concept's mean."""

    def outcomes(self, raw: Features, asked: Sequence[Sticker], *, real: bool = False) -> Outcomes:
        """Judge pictures by their features (n, 1280) against the stickers that were asked for.

        Args:
            raw: what the eyes saw.
            asked: one sticker of an iconic concept for each picture.
            real: the pictures are those stickers themselves, so that the drawings of a sticker's own style
                must be left out of the concepts' prototypes.
        """
        features = self._normal(raw)
        concepts = np.array([self.concept[s.concept] for s in asked])
        styles = np.array([self.style[s.style] for s in asked])
        rank = self._ranks(features, concepts, styles, leave_style_out=real)
        return {
            "retrieval_at_1": rank < 1,
            "retrieval_at_10": rank < 10,
            "style": self._nearest_style(features, concepts) == styles,
        }

    def _normal(self, raw: Features) -> Features:
        return _unit((raw - self.mean) / self.std).astype(np.float32)

    def _ranks(
        self,
        features: Features,
        concepts: npt.NDArray[np.int64],
        styles: npt.NDArray[np.int64],
        *,
        leave_style_out: bool,
    ) -> npt.NDArray[np.int64]:
        """Return how many concepts lie nearer to each picture than its own."""
        all_styles = self.sums.sum(1)
        scores = features @ _unit(all_styles).T
        for style in range(len(STYLES)) if leave_style_out else ():
            rows = styles == style
            scores[rows] = features[rows] @ _unit(all_styles - self.sums[:, style]).T
        own = scores[np.arange(len(concepts)), concepts]
        return np.asarray((scores > own[:, None]).sum(1))

    def _nearest_style(self, features: Features, concepts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the style whose direction each picture takes from its concept's mean.

        The directions are those of all other concepts. The mean holds every style, whichever was asked for,
        and so tells nothing; a real picture is a seventh of its own, which only makes its departure shorter.
        """
        everywhere = self.departures.sum(0)
        found = np.empty(len(features), np.int64)
        for concept in set(concepts.tolist()):
            rows = concepts == concept
            directions = _unit(everywhere - self.departures[concept])
            found[rows] = ((features[rows] - self.centres[concept]) @ directions.T).argmax(1)
        return found


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
