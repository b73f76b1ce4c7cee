"""Blur, fine detail and variety, on pictures whose figures are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, laplace

from flashbulb.distill.metrics.detail import diversity, high_frequency_ratio, sharpness


@pytest.fixture
def pictures():
    return torch.rand((3, 3, 32, 32), generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_sharpness_is_scipys_laplacian(pictures):
    expected = [
        np.mean([np.square(laplace(channel.numpy().astype(float))[1:-1, 1:-1]) for channel in picture])
        for picture in pictures
    ]
    assert sharpness(pictures) == pytest.approx(expected, rel=1e-5)


def test_energy_of_a_wave_is_where_its_frequency_is():
    """The limit, a quarter cycle a pixel, lies at sixteen waves on 64 pixels, in whatever direction."""
    x, y = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="xy")
    waves = [(15, 0), (17, 0), (0, 15), (0, 17), (11, 11), (12, 12)]
    below, above, *others = (
        torch.cos(2 * torch.pi * (f * x + g * y) / 64).expand(3, 64, 64) for f, g in waves
    )
    found = high_frequency_ratio(torch.stack([below, above, *others, below + 0.5 * above]))
    assert found == pytest.approx([0, 1, 0, 1, 0, 1, 0.25 / 1.25], abs=1e-6)


def test_contrast_does_not_change_the_ratio_and_a_flat_picture_has_none(pictures):
    assert high_frequency_ratio(pictures * 0.1 + 0.2) == pytest.approx(
        high_frequency_ratio(pictures), rel=1e-4
    )
    assert high_frequency_ratio(torch.full((2, 3, 16, 16), 0.7)).tolist() == [0, 0]


def test_blur_lowers_both(pictures):
    blurred = torch.from_numpy(gaussian_filter(pictures.numpy(), (0, 0, 1, 1)))
    assert (sharpness(blurred) < 0.3 * sharpness(pictures)).all()
    assert (high_frequency_ratio(blurred) < 0.5 * high_frequency_ratio(pictures)).all()


def test_diversity_is_the_mean_cosine_distance_within_a_caption():
    from scipy.spatial.distance import pdist

    features = np.random.default_rng(0).standard_normal((7, 16)).astype(np.float32)
    found = diversity(features, list("aaabbbc"))
    expected = [pdist(features[:3], "cosine").mean(), pdist(features[3:6], "cosine").mean()]
    assert found == pytest.approx(expected, rel=1e-5)
    assert diversity(np.ones((4, 8), np.float32), ["a"] * 4) == pytest.approx([0], abs=1e-6)
    with pytest.raises(ValueError, match="two pictures"):
        diversity(features[:4], list("abcd"))
