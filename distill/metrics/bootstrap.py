"""Bootstrap intervals over prompts, for a figure and for the difference of two checkpoints.

A resample is a row of counts: how often each prompt was drawn, with replacement, from the n there are. All
seeds of a prompt go together, and two checkpoints drawn from the same prompts are given the same counts, so
that the comparison is a paired one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Callable

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


def of_mean(values: npt.ArrayLike, counts: Counts) -> Interval:
    """Return the mean of ``values`` (seeds, n) or (n,), with the percentile interval over its prompts."""
    per_prompt = np.atleast_2d(np.asarray(values, np.float64)).mean(0)
    low, high = np.percentile(counts @ per_prompt / counts.sum(1), TAILS)
    return Interval(value=float(per_prompt.mean()), low=float(low), high=float(high))


def of_statistic(value: float, statistic: Callable[[Counts], Floats], counts: Counts) -> Interval:
    """Return ``value`` with the spread of a statistic that is no mean, such as a Frechet distance.

    A resample holds fewer distinct pictures than the sample, which alone raises a Frechet distance, so the
    percentiles are moved by the difference of the resamples' mean from the value: the interval states how far
    chance among the prompts moves the figure, and not the bias that any figure of n pictures has.

    Args:
        value: the figure of the sample itself.
        statistic: maps counts (r, n) to r figures.
        counts: the resamples, (r, n).
    """
    found = statistic(counts)
    low, high = np.percentile(found, TAILS) + (value - found.mean())
    return Interval(value=value, low=float(low), high=float(high))


def spread(per_seed: npt.ArrayLike) -> float | None:
    """Return the standard deviation (n - 1) over evaluation seeds, or None for a single one."""
    values = np.asarray(per_seed, np.float64)
    return float(values.std(ddof=1)) if len(values) > 1 else None
