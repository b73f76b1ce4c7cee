"""ELO ratings of pairwise preferences, as ADD's appendix rates models (arXiv 2311.17042): start 1000, K = 1.

A rating after a sequence of games depends on their order, so it is averaged over many shuffled orders. Two
spreads are stated beside it, because they answer different questions: over the orders alone (the same games,
shuffled), and over the games (drawn anew with replacement, in random order), which is how far the rating
would move with other prompts. A draw is half a win for both.

With K = 1 a rating moves by at most one point a game: after few games it lies nearer to 1000 than the odds
say, so that ratings are comparable only between models that played about equally often.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np

PERCENTILES = (2.5, 97.5)


class Game(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One comparison of two pictures: who drew them, and which was preferred."""

    first: str
    second: str
    result: Annotated[float, msgspec.Meta(ge=0, le=1)]
    """1 when the first won, 0 when the second won, 0.5 for a draw."""
    unit: str | None = None
    """What was compared, a prompt for example. Games of one unit are drawn anew together:
    two opinions on one picture are not two pictures. None: a unit of its own."""


class Elo(msgspec.Struct, frozen=True, kw_only=True):
    """The rating of one model."""

    mean: float
    """Mean over the shuffled orders."""
    order_low: float
    """2.5th percentile over the orders."""
    order_high: float
    """97.5th percentile over the orders."""
    low: float
    """2.5th percentile over games drawn anew."""
    high: float
    """97.5th percentile over games drawn anew."""
    wins: int
    losses: int
    draws: int

    @property
    def games(self) -> int:
        """Number of games played."""
        return self.wins + self.losses + self.draws


def elo(
    games: Sequence[Game], *, start: float = 1000.0, k: float = 1.0, orders: int = 1000, seed: int = 0
) -> dict[str, Elo]:
    """Return the rating of every model; in which order ``games`` come, and who is named first, plays no part.

    Args:
        games: all games; at least one.
        start: rating of every model before its first game.
        k: most points that one game moves.
        orders: number of shuffled orders, and of draws of the games.
        seed: of the shuffling and drawing.

    Raises:
        ValueError: for no games, no orders, or a game of a model against itself.
    """
    _check(games, orders)
    games = sorted((_turned(game) for game in games), key=_key)
    names = sorted({name for game in games for name in (game.first, game.second)})
    index = {name: i for i, name in enumerate(names)}
    pairs = np.array([(index[g.first], index[g.second]) for g in games])
    results = np.array([g.result for g in games])
    rng = np.random.default_rng(seed)
    shuffled = _play(pairs, results, _orders(rng, orders, len(games)), len(names), start, k)
    drawn = _play(pairs, results, _draws(rng, orders, _units(games)), len(names), start, k)
    return {name: _summary(i, shuffled, drawn, pairs, results) for name, i in index.items()}


def expected(first: float, second: float) -> float:
    """Return the probability that a model rated ``first`` beats one rated ``second``."""
    return 1 / (1 + 10 ** ((second - first) / 400))


def _check(games: Sequence[Game], orders: int) -> None:
    if not games:
        raise ValueError("wanted at least one game, got none")
    if orders < 1:
        raise ValueError(f"wanted at least one order, got {orders}")
    if same := [g.first for g in games if g.first == g.second]:
        raise ValueError(f"wanted games between two models, got {same[0]!r} against itself")


def _turned(game: Game) -> Game:
    """Return the same game with its models in alphabetical order."""
    if game.first < game.second:
        return game
    return Game(first=game.second, second=game.first, result=1 - game.result, unit=game.unit)


def _key(game: Game) -> tuple[str, str, str, float]:
    return game.unit or "", game.first, game.second, game.result


def _units(games: Sequence[Game]) -> np.ndarray:
    """Return the number of each game's unit: (games,), from 0 up."""
    names = [(i, "") if game.unit is None else (-1, game.unit) for i, game in enumerate(games)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names])


def _orders(rng: np.random.Generator, orders: int, games: int) -> np.ndarray:
    """Return shuffled orders of the games: (orders, games)."""
    return rng.permuted(np.tile(np.arange(games), (orders, 1)), axis=1)


def _draws(rng: np.random.Generator, orders: int, units: np.ndarray) -> np.ndarray:
    """Draw units with replacement, shuffle their games: (orders, most games), short ones filled with -1."""
    count = units.max() + 1
    times = rng.multinomial(count, np.full(count, 1 / count), size=orders)[:, units]
    rows = np.full((orders, times.sum(axis=1).max()), -1)
    for row, repeats in zip(rows, times, strict=True):
        games = rng.permutation(np.repeat(np.arange(len(units)), repeats))
        row[: len(games)] = games
    return rows


def _play(
    pairs: np.ndarray, results: np.ndarray, orders: np.ndarray, models: int, start: float, k: float
) -> np.ndarray:
    """Play all games in each order, all orders side by side; game -1 is none: ratings (orders, models)."""
    ratings = np.full((len(orders), models), start)
    rows = np.arange(len(orders))
    for column in orders.T:
        first, second = pairs[column].T
        odds = 1 / (1 + 10 ** ((ratings[rows, second] - ratings[rows, first]) / 400))
        change = np.where(column < 0, 0.0, k * (results[column] - odds))
        ratings[rows, first] += change
        ratings[rows, second] -= change
    return ratings


def _summary(
    model: int, shuffled: np.ndarray, drawn: np.ndarray, pairs: np.ndarray, results: np.ndarray
) -> Elo:
    gained = np.concatenate([results[pairs[:, 0] == model], 1 - results[pairs[:, 1] == model]])
    order_low, order_high = np.percentile(shuffled[:, model], PERCENTILES)
    low, high = np.percentile(drawn[:, model], PERCENTILES)
    wins, losses = int((gained > 0.5).sum()), int((gained < 0.5).sum())
    return Elo(
        mean=float(shuffled[:, model].mean()),
        order_low=float(order_low),
        order_high=float(order_high),
        low=float(low),
        high=float(high),
        wins=wins,
        losses=losses,
        draws=len(gained) - wins - losses,
    )
