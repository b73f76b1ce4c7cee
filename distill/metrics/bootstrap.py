"""Bootstrap intervals over prompts, for a figure and for the difference of two checkpoints.

A resample is a row of counts: how often each prompt was drawn, with replacement, from the n there are. All
seeds of a prompt go together, and two checkpoints drawn from the same prompts are given the same counts, so
that the comparison is a paired one.
"""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

TAILS = (2.5, 97.5)
"""Percentiles that hold 95 % of the resamples."""


class Interval(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A figure and where 95 % of its resamples lie."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside: said of a difference, whether it is larger than chance among prompts."""
        return self.low > 0 or self.high < 0


def resample(n: int, resamples: int, seed: int) -> Counts:
    """Return how often each of ``n`` prompts is drawn in each resample: (resamples, n), rows sum to n.

    Raises:
        ValueError: for fewer than two prompts.
    """
    if n < 2:
        raise ValueError(f"wanted at least two prompts to resample, got {n}")
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)


def resampled_mean(values: npt.ArrayLike, counts: Counts) -> Floats:
    """Return the mean of ``values`` (seeds, n) over seeds and prompts in each resample: (resamples,)."""
    per_prompt = np.atleast_2d(np.asarray(values, np.float64)).mean(0)
    return np.asarray(counts @ per_prompt / counts.sum(1))


def interval(value: float, resampled: Floats) -> Interval:
    """Return ``value`` with the 95 % of its resamples around it.

    A resample holds fewer distinct pictures than the sample, which alone raises a Frechet distance, so the
    percentiles are moved by the difference of the resamples' mean from the value. The interval states how far
    chance among the prompts moves the figure, and not the bias that every figure of n pictures has. The
    percentiles of a mean are moved by no more than the chance of the resampling itself.
    """
    low, high = np.percentile(resampled, TAILS) + (value - resampled.mean())
    return Interval(value=value, low=float(low), high=float(high))


def spread(per_seed: npt.ArrayLike) -> float | None:
    """Return the standard deviation (n - 1) over evaluation seeds, or None for a single one."""
    values = np.asarray(per_seed, np.float64)
    return float(values.std(ddof=1)) if len(values) > 1 else None
