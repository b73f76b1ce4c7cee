"""The Frechet distance against its closed form, the matrix square root and torch-fidelity."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from flashbulb.distill.metrics.frechet import frechet_distance, resampled


def test_of_gaussians_it_has_its_closed_form():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((20_000, 3)), 2 * rng.standard_normal((20_000, 3)) + 1
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, b) == pytest.approx(3 * 1 + 3 * (2 - 1) ** 2, rel=0.03)


@pytest.mark.parametrize("width", [6, 40], ids=["more pictures than features", "fewer"])
def test_it_equals_the_matrix_square_root(width):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((30, width))
    b = rng.standard_normal((25, width)) @ rng.standard_normal((width, width)) + 1
    ca, cb = np.cov(a.T), np.cov(b.T)
    root = sqrtm(ca @ cb + 1e-12 * np.eye(width)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)


def test_it_equals_torch_fidelity(fidelity, clouds):
    import torch

    stats = [
        fidelity.metric_fid.fid_features_to_statistics(torch.from_numpy(x.astype(float))) for x in clouds
    ]
    expected = fidelity.metric_fid.fid_statistics_to_metric(*stats, verbose=False)
    assert frechet_distance(*clouds) == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)


def test_a_resample_is_the_distance_of_the_resampled_pictures(clouds):
    a, b = clouds
    rng = np.random.default_rng(1)
    rows, columns = rng.integers(len(a), size=(4, len(a))), rng.integers(len(b), size=(4, len(b)))
    counts_a = np.stack([np.bincount(r, minlength=len(a)) for r in rows])
    counts_b = np.stack([np.bincount(c, minlength=len(b)) for c in columns])
    expected = [frechet_distance(a[r], b[c]) for r, c in zip(rows, columns, strict=True)]
    assert resampled(a, b)(counts_a, counts_b) == pytest.approx(expected, rel=1e-8)


def test_every_picture_once_is_the_sample_itself(clouds):
    a, b = clouds
    ones = [np.ones((1, len(x)), int) for x in clouds]
    assert resampled(a, b)(*ones)[0] == pytest.approx(frechet_distance(a, b), rel=1e-9)
