"""Figures of an evaluation with their intervals, and the differences of two on the same prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from flashbulb.distill.metrics.bootstrap import (
    Counts,
    Floats,
    Interval,
    interval,
    resample,
    resampled_mean,
    spread,
)
from flashbulb.distill.metrics.frechet import frechet_distance, resampled
from flashbulb.distill.metrics.manifold import NEIGHBOURS, precision_recall

if TYPE_CHECKING:
    from collections.abc import Callable

    from flashbulb.distill.metrics.evaluation import Evaluation

DISTANCES = {"judge": "frechet", "inception": "fid"}
"""Features -> name of the Frechet distance on them."""
FREE = 300
"""Pictures up to which a Frechet distance is resampled as often as all else; its cost grows with the cube."""
FEWEST = 50


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One figure of drawn pictures: mean over evaluation seeds, 95 % interval over prompts."""

    value: float
    low: float
    high: float
    spread: float | None = None
    """Standard deviation over evaluation seeds; none for a single seed."""
    real: float | None = None
    """The same figure of real pictures, where it has a meaning; a distance: of two sets of real pictures."""


class Draws(NamedTuple):
    """Counts of resamples along everything that is resampled."""

    prompts: Counts
    real: Counts
    repeated: Counts


class Estimate(NamedTuple):
    """A figure for each seed, and a function to its resamples."""

    per_seed: Floats
    resampled: Callable[[Draws], Floats]


def figures(evaluation: Evaluation, *, resamples: int = 1000, seed: int = 0) -> dict[str, Figure]:
    """Return every figure of an evaluation."""
    draws = _draws(evaluation, resamples, seed)
    real = evaluation.real_scores | _floor(evaluation)
    found = {}
    for name, estimate in estimates(evaluation).items():
        around = interval(float(estimate.per_seed.mean()), estimate.resampled(draws))
        found[name] = Figure(
            value=around.value,
            low=around.low,
            high=around.high,
            spread=spread(estimate.per_seed),
            real=real.get(name),
        )
    return found


def differences(
    first: Evaluation, second: Evaluation, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """Return first minus second for every figure that both have, resampled in pairs.

    Raises:
        ValueError: when they were not drawn from the same prompts or held against the same real pictures.
    """
    if first.captions != second.captions:
        raise ValueError("wanted two evaluations of the same prompts in the same order, got different ones")
    for name in first.real.keys() & second.real.keys():
        if not np.array_equal(first.real[name], second.real[name]):
            raise ValueError(f"wanted evaluations against the same real pictures, got others ({name})")
    draws = _draws(first, resamples, seed)
    ours, theirs = estimates(first), estimates(second)
    return {
        name: interval(
            float(ours[name].per_seed.mean() - theirs[name].per_seed.mean()),
            ours[name].resampled(draws) - theirs[name].resampled(draws),
        )
        for name in ours
        if name in theirs
    }


def estimates(evaluation: Evaluation) -> dict[str, Estimate]:
    """Return all figures of an evaluation, in the order of a table."""
    found = {name: _mean(values, "prompts") for name, values in evaluation.scores.items()}
    for features, real in evaluation.real.items():
        drawn = evaluation.features[features]
        found[DISTANCES[features]] = _distance(drawn, real)
        if features == "judge" and min(len(real), drawn.shape[1]) > NEIGHBOURS:
            pairs = [precision_recall(d, real) for d in drawn]
            found["precision"] = _mean(np.array([p for p, _ in pairs], float), "prompts")
            found["recall"] = _mean(np.array([r for _, r in pairs], float), "real")
    return found | {name: _mean(values, "repeated") for name, values in evaluation.repeated.items()}


def _mean(values: Floats, along: str) -> Estimate:
    """Return the mean of values (seeds, n) along what is resampled."""

    def resamples(draws: Draws) -> Floats:
        return resampled_mean(values, getattr(draws, along))

    return Estimate(values.mean(1), resamples)


def _distance(drawn: np.ndarray, real: np.ndarray) -> Estimate:
    """Return the Frechet distance of drawn features (seeds, n, d) from real ones (m, d)."""
    functions = [resampled(d, real) for d in drawn]

    def resamples(draws: Draws) -> Floats:
        some = _affordable(len(draws.prompts), drawn.shape[1])
        found = [function(draws.prompts[:some], draws.real[:some]) for function in functions]
        return np.mean(found, axis=0)

    return Estimate(np.array([frechet_distance(d, real) for d in drawn]), resamples)


def _affordable(resamples: int, pictures: int) -> int:
    """Return how many resamples of a Frechet distance to make."""
    return min(resamples, max(FEWEST, int(resamples * (FREE / pictures) ** 2)))


def _floor(evaluation: Evaluation) -> dict[str, float]:
    """Return the figures of real pictures in the place of drawn ones."""
    found = {}
    for features, real in evaluation.real.items():
        floor = evaluation.floor.get(features)
        if floor is None:
            continue
        found[DISTANCES[features]] = frechet_distance(floor, real)
        if features == "judge" and len(floor) > NEIGHBOURS:
            precise, recalled = precision_recall(floor, real)
            found |= {"precision": float(precise.mean()), "recall": float(recalled.mean())}
    return found


def _draws(evaluation: Evaluation, resamples: int, seed: int) -> Draws:
    prompts = resample(len(evaluation.captions), resamples, seed)
    reals = {len(real) for real in evaluation.real.values()}
    repeated = {values.shape[1] for values in evaluation.repeated.values()}
    return Draws(
        prompts=prompts,
        real=prompts if evaluation.paired or not reals else resample(reals.pop(), resamples, seed + 1),
        repeated=resample(repeated.pop(), resamples, seed + 2) if repeated else prompts,
    )
