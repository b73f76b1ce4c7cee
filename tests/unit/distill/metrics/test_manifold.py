"""Precision and recall against torch-fidelity, a double loop, and cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flashbulb.distill.metrics.manifold import inside, precision_recall


def by_hand(points: np.ndarray, manifold: np.ndarray, k: int) -> list[bool]:
    """Look at every pair, as eq. 1 of arXiv 1904.06991 is read."""
    radii = [sorted(math.dist(p, q) for q in manifold)[k] for p in manifold]
    return [any(math.dist(p, q) <= r for q, r in zip(manifold, radii, strict=True)) for p in points]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_it_equals_a_double_loop(clouds, k):
    a, b = (x[:, :4].astype(float) for x in clouds)
    precision, recall = precision_recall(a, b, k)
    assert precision.tolist() == by_hand(a, b, k)
    assert recall.tolist() == by_hand(b, a, k)
    assert 0 < precision.mean() < 1
    assert 0 < recall.mean() < 1


@pytest.mark.parametrize("k", [1, 2, 3])
def test_it_equals_torch_fidelity(fidelity, clouds, k):
    import torch

    a, b = (x[:, :4].astype(float) for x in clouds)
    full = fidelity.metric_prc.calculate_precision_recall_full
    expected = full(torch.from_numpy(a), torch.from_numpy(b), k)
    found = [float(x.mean()) for x in precision_recall(a, b, k)]
    assert found == pytest.approx(expected, abs=1e-6)


def test_collapse_lowers_recall_and_noise_lowers_precision():
    rng = np.random.default_rng(0)
    real = rng.standard_normal((300, 2))
    precision, recall = precision_recall(rng.standard_normal((300, 2)) * 0.05, real)
    assert precision.mean() == 1
    assert recall.mean() < 0.1
    precision, recall = precision_recall(rng.standard_normal((300, 2)) * 20, real)
    assert precision.mean() < 0.1
    assert recall.mean() > 0.9


def test_a_manifold_needs_its_neighbours():
    with pytest.raises(ValueError, match="more than 3 pictures for 3 neighbours, got 3"):
        inside(np.zeros((2, 2)), np.zeros((3, 2)))
