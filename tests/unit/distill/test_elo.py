"""ELO against its own arithmetic, done by hand."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashbulb.distill.metrics.elo import Game, elo


def test_one_game_moves_half_of_k():
    scores = elo([Game(first="a", second="b", result=1.0)])
    assert (scores["a"].mean, scores["b"].mean) == (1000.5, 999.5)
    assert scores["a"].games == 1


def test_a_second_win_moves_a_little_less():
    scores = elo([Game(first="a", second="b", result=1.0)] * 2, orders=3)
    expected = 1 / (1 + 10 ** (-1 / 400))  # of a, which leads by one point
    assert scores["a"].mean == pytest.approx(1000.5 + 1 - expected)


def test_a_long_match_settles_at_the_odds():
    """With a won three times of four, the gap tends to 400 log10(3)."""
    games = [Game(first="a", second="b", result=float(i % 4 != 0)) for i in range(8000)]
    scores = elo(games, orders=5)
    assert scores["a"].mean - scores["b"].mean == pytest.approx(190.8, abs=15)


@given(seed=st.integers(0, 2**32))
def test_the_order_of_the_games_does_not_matter_after_the_bootstrap(seed: int):
    rng = random.Random(seed)
    names = ["student", "teacher", "lcm"]
    games = [
        Game(first=a, second=b, result=float(rng.random() < 0.6))
        for a, b in (rng.sample(names, 2) for _ in range(60))
    ]
    shuffled = rng.sample(games, len(games))
    first, second = elo(games, orders=400), elo(shuffled, orders=400)
    for name, score in first.items():
        assert score.mean == pytest.approx(second[name].mean, abs=0.25)
        assert score.low <= score.mean <= score.high
    assert sum(s.mean for s in first.values()) == pytest.approx(1000 * len(first))


def test_no_games_and_a_game_against_oneself_are_refused():
    with pytest.raises(ValueError, match="at least one game"):
        elo([])
    with pytest.raises(ValueError, match="against itself"):
        elo([Game(first="a", second="a", result=1.0)])
