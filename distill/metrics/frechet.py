"""Frechet distance of two sets of features (FID's formula, arXiv 1706.08500, eq. 6), and its resamples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable

    from flashbulb.distill.metrics.bootstrap import Counts, Floats

Features = npt.NDArray[np.float32]


def frechet_distance(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Return the Frechet distance of two feature sets (n, d) and (m, d).

    ``|mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))``; the trace of the root is the sum of the singular
    values of ``A B^T``, with A and B the centred, scaled features (QR first), so it stays exact when n < d.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    centred_a, centred_b = (x - x.mean(0) for x in (a, b))
    scaled_a, scaled_b = centred_a / np.sqrt(len(a) - 1), centred_b / np.sqrt(len(b) - 1)
    upper_a, upper_b = (np.asarray(np.linalg.qr(x, mode="r")) for x in (scaled_a, scaled_b))
    root = np.asarray(np.linalg.svd(upper_a @ upper_b.T, compute_uv=False)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + (scaled_a**2).sum() + (scaled_b**2).sum() - 2 * root)


def resampled(a: Features, b: Features) -> Callable[[Counts, Counts], Floats]:
    """Return a function from counts (r, n) and (r, m) to the r Frechet distances of the resampled sets.

    All of the formula can be written with the inner products of the pictures, so that each resample costs the
    singular values of one matrix of the pictures that it holds, whatever the width of the features.
    """
    centre = np.concatenate([a, b]).mean(0, dtype=np.float64)
    a64, b64 = a - centre, b - centre
    products = (a64 @ a64.T, a64 @ b64.T, b64 @ b64.T)

    def distances(counts_a: Counts, counts_b: Counts) -> Floats:
        return np.array([_weighted(*products, u, v) for u, v in zip(counts_a, counts_b, strict=True)])

    return distances


def _weighted(aa: Floats, ab: Floats, bb: Floats, counts_a: Counts, counts_b: Counts) -> float:
    """Return the Frechet distance of two sets whose pictures occur ``counts`` times, from inner products."""
    rows, columns = counts_a.nonzero()[0], counts_b.nonzero()[0]
    u, v = counts_a[rows].astype(np.float64), counts_b[columns].astype(np.float64)
    aa, ab, bb = aa[np.ix_(rows, rows)], ab[np.ix_(rows, columns)], bb[np.ix_(columns, columns)]
    p, q = u / u.sum(), v / v.sum()
    mean_aa, mean_ab, mean_bb = p @ aa @ p, p @ ab @ q, q @ bb @ q
    centred = ab - (ab @ q)[:, None] - (p @ ab)[None] + mean_ab
    scaled = centred * np.sqrt(np.outer(u / (u.sum() - 1), v / (v.sum() - 1)))
    trace_a = (u @ np.diag(aa) - u.sum() * mean_aa) / (u.sum() - 1)
    trace_b = (v @ np.diag(bb) - v.sum() * mean_bb) / (v.sum() - 1)
    root = np.asarray(np.linalg.svd(scaled, compute_uv=False)).sum()
    return float(mean_aa - 2 * mean_ab + mean_bb + trace_a + trace_b - 2 * root)
