"""ELO scores of pairwise preferences, as ADD's appendix rates models (arXiv 2311.17042): start 1000, K = 1.

The score after a sequence of games depends on their order, so it is averaged over many shuffled orders, and
the spread over the orders is stated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np


class Game(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One comparison of two pictures: who drew them, and which was preferred."""

    first: str
    second: str
    result: Annotated[float, msgspec.Meta(ge=0, le=1)]
    """1 when the first won, 0 when the second won, 0.5 for a tie."""


class Elo(msgspec.Struct, frozen=True, kw_only=True):
    """The score of one model."""

    mean: float
    low: float
    """2.5th percentile over the orders."""
    high: float
    """97.5th percentile over the orders."""
    games: int


def elo(
    games: Sequence[Game], *, start: float = 1000.0, k: float = 1.0, orders: int = 1000, seed: int = 0
) -> dict[str, Elo]:
    """Return the score of every model, averaged over shuffled orders of the games.

    Raises:
        ValueError: for no games, or a game of a model against itself.
    """
    if not games:
        raise ValueError("wanted at least one game, got none")
    if same := [g.first for g in games if g.first == g.second]:
        raise ValueError(f"wanted games between two models, got {same[0]!r} against itself")
    names = sorted({name for game in games for name in (game.first, game.second)})
    index = {name: i for i, name in enumerate(names)}
    pairs = np.array([(index[g.first], index[g.second]) for g in games])
    results = np.array([g.result for g in games])
    rng = np.random.default_rng(seed)
    permutations = np.argsort(rng.random((orders, len(games))), axis=1)
    scores = _play(pairs, results, permutations, len(names), start, k)
    low, high = np.percentile(scores, (2.5, 97.5), axis=0)
    return {
        name: Elo(
            mean=float(scores[:, i].mean()),
            low=float(low[i]),
            high=float(high[i]),
            games=int((pairs == i).sum()),
        )
        for name, i in index.items()
    }


def _play(
    pairs: np.ndarray, results: np.ndarray, permutations: np.ndarray, models: int, start: float, k: float
) -> np.ndarray:
    """Play all games in each order, all orders side by side; return the scores (orders, models)."""
    scores = np.full((len(permutations), models), start)
    rows = np.arange(len(permutations))
    for column in permutations.T:
        first, second = pairs[column].T
        expected = 1 / (1 + 10 ** ((scores[rows, second] - scores[rows, first]) / 400))
        change = k * (results[column] - expected)
        scores[rows, first] += change
        scores[rows, second] -= change
    return scores
