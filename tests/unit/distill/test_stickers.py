"""The embedded data: split, captions, compositing; and the vocabulary's own rules."""

import random

import pytest
import torch

from flashbulb.distill.data.build import slug, split_of
from flashbulb.distill.data.stickers import Stickers, draw
from flashbulb.distill.data.words import BACKGROUNDS, ICONIC, STYLES, caption
from flashbulb.distill.metrics.judge import background_of, diversity, frechet_distance, sharpness


@pytest.fixture(scope="module")
def data():
    return Stickers()


def test_the_world_is_as_large_as_the_card_says(data):
    concepts = {s.concept for s in data.items}
    assert len(data.items) == 3657
    assert len(concepts) == 556
    assert len(ICONIC) == len(set(ICONIC)) == 148
    assert set(ICONIC) <= concepts
    assert {s.style for s in data.items} == set(STYLES)


def test_splits_do_not_leak(data):
    train = {(s.concept, s.style) for s in data.select("train")}
    held = {(s.concept, s.style) for s in data.select("combination")}
    assert not train & held
    assert {c for c, _ in held} <= {c for c, _ in train}
    assert not {s.concept for s in data.select("unseen")} & {c for c, _ in train}
    assert all(split_of(s.concept, s.style) == s.split for s in data.items)


def test_background_is_exact_and_recognised(data):
    stickers, backgrounds = draw(data.items, 200, random.Random(0))
    pictures = data.composite(stickers, backgrounds)
    assert pictures.shape == (200, 3, 64, 64)
    assert pictures.abs().max() <= 1
    for picture, name in zip(pictures, backgrounds, strict=True):
        assert torch.allclose(
            (picture[:, 0, 0] + 1) * 127.5, torch.tensor(BACKGROUNDS[name]).float(), atol=0.51
        )
    assert background_of(pictures) == backgrounds


def test_captions_name_concept_style_and_background():
    assert caption("owl", "emojione", "orange") == "a classic owl on an orange background"
    for seed in range(50):
        text = caption("red apple", "fluent-emoji", "pink", random.Random(seed))
        assert "apple" in text
        assert "pink" in text
        assert "glossy" in text or "3d" in text


def test_slug_is_the_packages_spelling():
    assert slug("Woman’s hat") == "womans-hat"
    assert slug("piñata") == "pinata"


def test_frechet_distance_of_gaussians_has_its_closed_form():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(20_000, 3, generator=generator).numpy()
    b = (2 * torch.randn(20_000, 3, generator=generator) + 1).numpy()
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, b) == pytest.approx(3 * 1 + 3 * (2 - 1) ** 2, rel=0.03)


def test_frechet_distance_equals_the_matrix_square_root():
    import numpy as np
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((200, 6)), rng.standard_normal((150, 6)) @ rng.standard_normal((6, 6)) + 1
    ca, cb = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_diversity_is_zero_for_one_picture_and_needs_two():
    import numpy as np

    same = np.ones((4, 8), np.float32)
    assert diversity(same, ["a"] * 4) == pytest.approx(0, abs=1e-6)
    assert diversity(np.eye(4, dtype=np.float32), ["a"] * 4) == pytest.approx(1)
    with pytest.raises(ValueError, match="two pictures"):
        diversity(same, list("abcd"))


def test_blur_lowers_sharpness(data):
    pictures = data.composite(data.items[:8], ["white"] * 8)
    assert sharpness(torch.nn.functional.avg_pool2d(pictures, 3, 1, 1)) < 0.3 * sharpness(pictures)
