"""ELO against its own arithmetic done by hand, every order of a few games, and Bradley and Terry's model."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import norm

from flashbulb.distill.metrics.elo import Game, elo, expected

NAMES = ["student", "teacher", "lcm"]


def random_games(seed: int, count: int = 60) -> list[Game]:
    rng = random.Random(seed)
    return [
        Game(first=a, second=b, result=rng.choice((0.0, 0.5, 1.0, 1.0)), unit=rng.choice("pqrs"))
        for a, b in (rng.sample(NAMES, 2) for _ in range(count))
    ]


def every_order(games: list[Game]) -> dict[str, list[float]]:
    """Play each permutation with plain floats, as the formula is written."""
    found: dict[str, list[float]] = {}
    for order in itertools.permutations(games):
        ratings = {name: 1000.0 for game in games for name in (game.first, game.second)}
        for game in order:
            gap = (ratings[game.second] - ratings[game.first]) / 400
            change = game.result - 1 / (1 + 10**gap)
            ratings[game.first] += change
            ratings[game.second] -= change
        for name, rating in ratings.items():
            found.setdefault(name, []).append(rating)
    return found


def test_one_game_moves_half_of_k():
    ratings = elo([Game(first="a", second="b", result=1.0)])
    assert (ratings["a"].mean, ratings["b"].mean) == (1000.5, 999.5)
    assert (ratings["a"].wins, ratings["a"].losses, ratings["a"].games) == (1, 0, 1)
    assert (ratings["b"].wins, ratings["b"].losses) == (0, 1)


def test_start_and_k_are_knobs():
    ratings = elo([Game(first="a", second="b", result=1.0)], start=0.0, k=32.0)
    assert (ratings["a"].mean, ratings["b"].mean) == (16.0, -16.0)


def test_a_second_win_moves_a_little_less():
    ratings = elo([Game(first="a", second="b", result=1.0)] * 2, orders=3)
    odds = 1 / (1 + 10 ** (-1 / 400))  # of a, which leads by one point
    assert ratings["a"].mean == pytest.approx(1000.5 + 1 - odds)
    assert expected(1000.5, 999.5) == pytest.approx(odds)


def test_a_draw_between_equals_moves_nothing_and_one_after_a_win_moves_back():
    draw = Game(first="a", second="b", result=0.5)
    ratings = elo([draw])
    assert (ratings["a"].mean, ratings["b"].mean, ratings["a"].draws) == (1000.0, 1000.0, 1)
    win_then_draw = 1000.5 + 0.5 - expected(1000.5, 999.5)
    ratings = elo([draw, Game(first="a", second="b", result=1.0)], orders=4000)
    assert ratings["a"].mean == pytest.approx((win_then_draw + 1000.5) / 2, abs=1e-4)
    assert ratings["a"].order_low == pytest.approx(win_then_draw)
    assert ratings["a"].order_high == pytest.approx(1000.5)


def test_the_mean_is_that_over_every_order():
    games = [
        Game(first="a", second="b", result=1.0),
        Game(first="a", second="b", result=0.0),
        Game(first="b", second="c", result=1.0),
        Game(first="c", second="a", result=0.5),
        Game(first="c", second="a", result=1.0),
        Game(first="b", second="a", result=1.0),
    ]
    orders, exact = 4000, every_order(games)
    for name, rating in elo(games, orders=orders).items():
        error = np.std(exact[name]) / math.sqrt(orders)
        assert abs(rating.mean - np.mean(exact[name])) < 4 * error
        assert rating.order_low == pytest.approx(np.percentile(exact[name], 2.5), abs=20 * error)
        assert rating.order_high == pytest.approx(np.percentile(exact[name], 97.5), abs=20 * error)
        assert rating.order_low < rating.mean < rating.order_high


def test_a_long_match_settles_at_the_odds():
    """With a won three times of four, the gap tends to 400 log10(3)."""
    games = [Game(first="a", second="b", result=float(i % 4 != 0)) for i in range(8000)]
    ratings = elo(games, orders=5)
    assert ratings["a"].mean - ratings["b"].mean == pytest.approx(400 * math.log10(3), abs=15)


def test_long_tournaments_agree_with_bradley_and_terry():
    """Their maximum likelihood, found by scipy, is where the expected change of every rating is nought."""
    won = {("a", "b"): 850, ("b", "c"): 900, ("a", "c"): 1150}
    games = [
        Game(first=x, second=y, result=float(i < wins)) for (x, y), wins in won.items() for i in range(1500)
    ]

    def surprise(free: np.ndarray) -> float:
        r = dict(zip("abc", (free[0], free[1], -free.sum()), strict=True))
        return -sum(
            wins * math.log(expected(r[x], r[y])) + (1500 - wins) * math.log(expected(r[y], r[x]))
            for (x, y), wins in won.items()
        )

    fit = minimize(surprise, np.zeros(2), method="BFGS").x
    ratings = elo(games, orders=100)
    for name, value in zip("abc", (*fit, -fit.sum()), strict=True):
        assert ratings[name].mean - 1000 == pytest.approx(value, abs=4)


@pytest.mark.parametrize("voters", [1, 4])
def test_the_interval_is_that_of_the_number_of_units(voters: int):
    """With a small k ratings are linear in the wins; these are binomial in the prompts, not in the votes."""
    prompts, won, k = 400, 0.7, 1e-6
    games = [
        Game(first="a", second="b", result=float(i < won * prompts), unit=f"{i:03}")
        for i in range(prompts)
        for _ in range(voters)
    ]
    rating = elo(games, start=0.0, k=k, orders=4000)["a"]
    spread = voters * math.sqrt(prompts * won * (1 - won))
    width = (rating.high - rating.low) / k
    assert width == pytest.approx(2 * norm.ppf(0.975) * spread, rel=0.06)
    assert rating.mean / k == pytest.approx(voters * prompts * (won - 0.5), rel=1e-3)
    assert rating.order_high - rating.order_low < 0.01 * k  # shuffling alone says nothing of this


def test_games_without_a_unit_count_one_each():
    games = [Game(first="a", second="b", result=float(i % 2)) for i in range(100)]
    named = [
        Game(first=g.first, second=g.second, result=g.result, unit=f"{i:03}") for i, g in enumerate(games)
    ]
    loose, tight = elo(games, orders=4000)["a"], elo(named, orders=4000)["a"]
    assert loose.high - loose.low == pytest.approx(tight.high - tight.low, rel=0.1)
    together = [Game(first=g.first, second=g.second, result=g.result, unit="one") for g in games]
    one = elo(together, orders=4000)["a"]
    assert (one.low, one.high) == pytest.approx((one.order_low, one.order_high), abs=0.1)


@given(seed=st.integers(0, 2**32))
def test_order_and_side_of_the_games_do_not_matter(seed: int):
    games = random_games(seed)
    rng = random.Random(seed)
    turned = [
        Game(first=g.second, second=g.first, result=1 - g.result, unit=g.unit) if rng.random() < 0.5 else g
        for g in rng.sample(games, len(games))
    ]
    assert elo(games, orders=20) == elo(turned, orders=20)


@given(seed=st.integers(0, 2**32))
def test_after_the_bootstrap_another_seed_says_the_same(seed: int):
    games = random_games(seed)
    first, second = elo(games, orders=400), elo(games, orders=400, seed=1)
    for name, rating in first.items():
        assert rating.mean == pytest.approx(second[name].mean, abs=0.25)
        assert rating.order_low <= rating.mean <= rating.order_high
    assert sum(r.mean for r in first.values()) == pytest.approx(1000 * len(first))


def test_no_games_no_orders_and_a_game_against_oneself_are_refused():
    with pytest.raises(ValueError, match="at least one game"):
        elo([])
    with pytest.raises(ValueError, match="at least one order, got 0"):
        elo([Game(first="a", second="b", result=1.0)], orders=0)
    with pytest.raises(ValueError, match="against itself"):
        elo([Game(first="a", second="a", result=1.0)])
