"""The embedded data: split, captions, compositing; and the vocabulary's own rules."""

import random

import pytest
import torch

from flashbulb.distill.data.build import slug, split_of
from flashbulb.distill.data.stickers import Stickers, draw
from flashbulb.distill.data.words import BACKGROUNDS, ICONIC, STYLES, caption
from flashbulb.distill.metrics.detail import sharpness
from flashbulb.distill.metrics.judge import background_of


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


def test_blur_lowers_sharpness(data):
    pictures = data.composite(data.items[:8], ["white"] * 8)
    blurred = torch.nn.functional.avg_pool2d(pictures, 3, 1, 1)
    assert sharpness(blurred).mean() < 0.3 * sharpness(pictures).mean()
