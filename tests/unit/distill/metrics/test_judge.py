"""The judge's protocol with eyes that cost nothing: sixteen by sixteen pixels instead of a network."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from torch.nn import functional

from flashbulb.distill.data.stickers import Stickers
from flashbulb.distill.data.words import ICONIC, STYLES
from flashbulb.distill.metrics.judge import Judge


def eyes(pictures):
    return functional.avg_pool2d(pictures, 4).flatten(1).numpy()


@pytest.fixture(scope="module")
def data():
    return Stickers()


@pytest.fixture(scope="module")
def judge(data):
    return Judge(data, eyes)


@pytest.fixture(scope="module")
def asked(data):
    return random.Random(0).sample(data.select("train", iconic=True), 120)


@pytest.fixture(scope="module")
def by_hand(data, judge, asked):
    """Normalised features of the asked and of all reference stickers."""
    reference = [s for s in data.items if s.concept in set(ICONIC)]
    raw = [eyes(data.composite(s, ["white"] * len(s))) for s in (asked, reference)]
    mean, std = raw[1].mean(0), raw[1].std(0) + 1e-3
    unit = [(x - mean) / std / np.linalg.norm((x - mean) / std, axis=1, keepdims=True) for x in raw]
    return raw[0], unit[0], unit[1], reference


@pytest.mark.parametrize("real", [False, True], ids=["drawn", "real: own style left out"])
def test_retrieval_is_the_rank_among_cosine_distances(judge, asked, by_hand, real):
    raw, features, references, reference = by_hand
    ranks = []
    for sticker, feature in zip(asked, features, strict=True):
        kept = [i for i, r in enumerate(reference) if not (real and r.style == sticker.style)]
        means = [
            references[[i for i in kept if reference[i].concept == concept]].mean(0) for concept in ICONIC
        ]
        order = np.argsort(cdist(feature[None], means, "cosine")[0])
        ranks.append(order.tolist().index(ICONIC.index(sticker.concept)))
    found = judge.outcomes(raw, asked, real=real)
    assert found["retrieval_at_1"].tolist() == [r < 1 for r in ranks]
    assert found["retrieval_at_10"].tolist() == [r < 10 for r in ranks]
    assert 0.1 < found["retrieval_at_10"].mean() <= 1


def test_style_is_the_direction_from_the_concepts_mean_by_other_concepts(judge, asked, by_hand):
    raw, features, references, reference = by_hand
    names = np.array([r.concept for r in reference])
    centres = {concept: references[names == concept].mean(0) for concept in ICONIC}
    departures = references - np.stack([centres[name] for name in names])
    expected = []
    for sticker, feature in zip(asked, features, strict=True):
        others = [
            [i for i, r in enumerate(reference) if r.style == s and names[i] != sticker.concept]
            for s in STYLES
        ]
        means = [departures[rows].mean(0) for rows in others]
        nearest = cdist((feature - centres[sticker.concept])[None], means, "cosine")[0].argmin()
        expected.append(list(STYLES)[nearest] == sticker.style)
    found = judge.outcomes(raw, asked)["style"]
    assert found.tolist() == expected
    assert 1.5 / 7 < found.mean() < 1


def test_pictures_of_something_else_are_at_chance(data, judge, asked):
    """Each sticker is asked for, and another one is shown."""
    others = random.Random(1).sample(data.select("train", iconic=True), len(asked))
    raw = eyes(data.composite(others, ["white"] * len(others)))
    found = judge.outcomes(raw, asked)
    assert found["retrieval_at_1"].mean() < 0.05
    assert found["retrieval_at_10"].mean() < 0.25
    assert found["style"].mean() < 0.3
