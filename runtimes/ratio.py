"""How much slower one thing is than another, as a ratio with an interval.  Numpy and scipy only.

Two programs run in turns.  Whatever slows the machine for a while slows both sides of a pair of turns, so the
logarithms of the pairs' ratios are averaged (their middle half, so that single disturbed turns do not count),
and the pairs are drawn again with replacement for a bootstrap interval (Efron 1979).  Few pairs show less of
their spread than there is, so its percentiles lie further out, as Student's bounds do (Hesterberg 2015,
section 5.3: the expanded percentile interval).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashbulb.runtimes.records import Decision

RESAMPLES = 4000
LEAST_TURNS = 8
"""Fewer pairs of turns tell nothing about their own spread."""
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A ratio and the bounds that it lies between with the given confidence."""

    low: float
    ratio: float
    high: float

    def decide(self, limit: float) -> Decision:
        """Hold the ratio to a limit: only an interval that lies wholly on one side decides."""
        if self.high <= limit:
            return "pass"
        return "fail" if self.low > limit else "undecided"

    def __str__(self) -> str:
        return f"{self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio_interval(
    mine: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], *, confidence: float = CONFIDENCE
) -> Interval | None:
    """Return the ratio of two programs' times from runs in turns.

    Args:
        mine: times of the runs of each turn, any unit.
        theirs: the same for the other program; turn i of both was measured at about the same time.
        confidence: probability that the interval covers the ratio.

    Returns:
        None for fewer than `LEAST_TURNS` pairs.
    """
    count = min(len(mine), len(theirs))
    if count < LEAST_TURNS:
        return None
    logs = np.log([np.median(turn) for turn in mine[:count]])
    logs -= np.log([np.median(turn) for turn in theirs[:count]])
    draws = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    means = _middle_mean(logs[draws])
    tail = expanded((1.0 - confidence) / 2.0, count)
    low, high = np.quantile(means, (tail, 1.0 - tail))
    return Interval(*(float(np.exp(v)) for v in (low, _middle_mean(logs[None])[0], high)))


def expanded(tail: float, count: int) -> float:
    """Return the share of resamples to leave out at an end, so that ``tail`` of all intervals miss there."""
    from scipy.special import ndtr, stdtrit

    return float(ndtr(stdtrit(count - 1, tail) * math.sqrt(count / (count - 1))))


def in_turns(runs: Sequence[float], size: int) -> list[list[float]]:
    """Cut runs into turns of one size; an unfinished turn is dropped."""
    return [list(runs[i : i + size]) for i in range(0, len(runs) - size + 1, size)]


def _middle_mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Average the middle half of each row."""
    ordered = np.sort(values, axis=-1)
    cut = ordered.shape[-1] // 4
    return np.asarray(ordered[..., cut : ordered.shape[-1] - cut].mean(axis=-1))
