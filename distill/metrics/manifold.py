"""Improved precision and recall (arXiv 1904.06991): does a picture lie where the other set's pictures lie?

The manifold of a set is the union of balls around its features, each as large as the distance to the k-th
nearest other one. Precision: share of drawn pictures inside the real manifold. Recall: share of real pictures
inside the drawn one. Both are means over pictures, so they are returned picture by picture.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

NEIGHBOURS = 3
"""k of the paper (section 3)."""


def inside(points: npt.ArrayLike, manifold: npt.ArrayLike, k: int = NEIGHBOURS) -> npt.NDArray[np.bool_]:
    """Return for each of ``points`` (n, d) whether it lies in the manifold of features (m, d) (eq. 1).

    Raises:
        ValueError: when the manifold has no k-th neighbour.
    """
    from scipy.spatial.distance import cdist

    there = np.asarray(manifold, np.float64)
    if len(there) <= k:
        raise ValueError(f"wanted more than {k} pictures for {k} neighbours, got {len(there)}")
    radii = np.partition(cdist(there, there), k, axis=1)[:, k]  # the nearest is the picture itself
    return np.asarray((cdist(np.asarray(points, np.float64), there) <= radii).any(1))


def precision_recall(
    drawn: npt.ArrayLike, real: npt.ArrayLike, k: int = NEIGHBOURS
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return (drawn picture is precise (n,), real picture is recalled (m,)) (arXiv 1904.06991, eq. 2)."""
    return inside(drawn, real, k), inside(real, drawn, k)
