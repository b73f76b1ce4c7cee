"""Palettization: a table of 2**bits values per tensor, found by one-dimensional k-means."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from flashbulb.compress.encoding import EncodedTensor, Encoding
from flashbulb.compress.methods.base import Method, finite

Floats = npt.NDArray[np.float64]


class Palettize(Method, frozen=True, kw_only=True, tag="palettize"):
    """Store each weight as an index into a table of 2**bits float16 values (k-means, Lloyd 1982)."""

    bits: Literal[1, 2, 4, 6, 8] = 6
    """Bits of one index. Below 6 a diffusion model needs fine-tuning."""
    max_rounds: int = 500
    """Upper bound of Lloyd rounds; most tensors settle before."""

    def encode(self, weight: npt.NDArray[Any]) -> EncodedTensor:
        """Return nearest-entry codes [same shape] and the ascending table [2**bits]."""
        values = finite(weight)
        lut = cluster(values, 2**self.bits, self.max_rounds).astype(np.float16).astype(np.float32)
        encoding = Encoding(kind="palettize", bits=self.bits, granularity="per_tensor", shape=values.shape)
        return EncodedTensor(encoding=encoding, codes=nearest(values, lut), lut=lut)


def cluster(values: npt.NDArray[Any], count: int, max_rounds: int) -> Floats:
    """Return ``count`` ascending centres of one-dimensional k-means.

    On sorted values a cluster is an interval, so one Lloyd round is a binary search for the interval ends and
    a difference of prefix sums: O(count log n) after one sort. The best of three deterministic starts wins.
    """
    points = np.sort(values.reshape(-1)).astype(np.float64)
    distinct = np.unique(points)
    if len(distinct) <= count:
        return np.pad(distinct, (0, count - len(distinct)), mode="edge")
    sums = np.concatenate([[0.0], np.cumsum(points)])
    runs = (lloyd(points, sums, start, max_rounds) for start in starts(points, count))
    # squared error = sum x^2 - sum_j n_j mean_j^2, and the first term is the same for every start
    return max(runs, key=lambda centres: explained(points, sums, centres))


def starts(points: Floats, count: int) -> tuple[Floats, ...]:
    """Return starting centres: even ones, and by the cube root of the density (Panter and Dite 1951).

    The histogram is coarse on purpose: cube roots of nearly empty bins would draw centres into the tails.
    """
    even = np.linspace(points[0], points[-1], 2 * count + 1)[1::2].astype(np.float64)
    return even, *(by_density(points, count, bins) for bins in (64, 256))


def by_density(points: Floats, count: int, bins: int) -> Floats:
    """Return the quantiles of the cube root of the density."""
    counts, edges = np.histogram(points, bins=bins)
    mass = np.concatenate([[0.0], np.cumsum(np.cbrt(counts))])
    middle = (np.arange(count) + 0.5) / count
    return np.interp(middle * mass[-1], mass, edges).astype(np.float64)


def lloyd(points: Floats, sums: Floats, centres: Floats, max_rounds: int) -> Floats:
    """Move centres to the means of their intervals until the intervals stop changing."""
    ends = None
    for _ in range(max_rounds):
        fresh = interval_ends(points, centres)
        if ends is not None and np.array_equal(fresh, ends):
            break
        ends = fresh
        size = np.diff(ends)
        means = np.diff(sums[ends]) / np.maximum(size, 1)
        centres = np.sort(np.where(size > 0, means, centres))
    return centres


def interval_ends(points: Floats, centres: Floats) -> npt.NDArray[np.intp]:
    """Return the k + 1 positions in the sorted points at which nearest-centre intervals begin and end."""
    inner = np.searchsorted(points, (centres[1:] + centres[:-1]) / 2)
    return np.concatenate([[0], inner, [len(points)]])


def explained(points: Floats, sums: Floats, centres: Floats) -> float:
    """Return sum_j n_j mean_j^2 of the nearest-centre intervals."""
    ends = interval_ends(points, centres)
    return float((np.diff(sums[ends]) ** 2 / np.maximum(np.diff(ends), 1)).sum())


def nearest(values: npt.NDArray[np.float32], lut: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return the index of the nearest table entry of every value; a tie goes to the lower entry."""
    table = lut.astype(np.float64)
    codes = np.searchsorted((table[1:] + table[:-1]) / 2, values.reshape(-1).astype(np.float64), side="left")
    return codes.astype(np.uint8).reshape(values.shape)
