"""``flashbulb elo``: ratings of models from the votes of people, and how far the voters agree."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from flashbulb.distill.metrics.agreement import Agreement, krippendorff, pairwise
from flashbulb.distill.metrics.votes import Question, Vote, read_votes

log = logging.getLogger(__name__)


class EloConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Rate models from votes, as ADD's appendix does (arXiv 2311.17042)."""

    votes: tuple[Path, ...]
    """Files of votes, as flashbulb vote writes them."""
    question: Question | None = None
    """Count the votes on this question; none where all are on one."""
    draws: Literal["half", "drop"] = "half"
    """A vote for neither is half a win for both, or does not count."""
    start: float = 1000.0
    """Rating before the first game."""
    k: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """Most points that a game moves."""
    orders: Annotated[int, msgspec.Meta(gt=0)] = 1000
    """Shuffled orders of the games, and draws of the games, to average over."""
    seed: int = 0
    """Seed of the shuffling."""
    out: Path | None = None
    """JSON file for the record; none writes nothing."""


class Rating(msgspec.Struct, frozen=True, kw_only=True):
    """One model: see :class:`flashbulb.distill.metrics.elo.Elo`."""

    model: str
    elo: float
    order_low: float
    order_high: float
    low: float
    high: float
    wins: int
    losses: int
    draws: int


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """All games of two models against each other."""

    first: str
    second: str
    wins: int
    """Won by the first."""
    losses: int
    """Won by the second."""
    draws: int


class PreferenceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Ratings, best first, and what they rest on."""

    question: str
    votes: int
    start: float
    k: float
    orders: int
    seed: int
    draws: str
    ratings: list[Rating]
    matches: list[Match]
    voters: dict[str, int]
    """Votes of each voter."""
    left_share: float | None
    """Share of the decided votes that went to the left picture: one half where the side plays no part."""
    left_p: float | None
    """Probability of a share at least so far from one half by chance (exact binomial test)."""
    agreement: list[Agreement]
    alpha: float | None
    """Krippendorff's alpha over all voters."""


def run(config: EloConfig) -> PreferenceRecord:
    """Read the votes, rate the models, write the record where one is wanted, and return it.

    Raises:
        ValueError: for no votes, or votes on several questions of which none was chosen.
    """
    votes = choose(read_votes(config.votes), config)
    record = rate(votes, config)
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_bytes(msgspec.json.format(msgspec.json.encode(record)) + b"\n")
    return record


def choose(votes: Sequence[Vote], config: EloConfig) -> list[Vote]:
    """Return the votes on the question that was asked for."""
    questions = sorted({vote.question for vote in votes})
    if config.question is None and len(questions) > 1:
        raise ValueError(f"wanted votes on one question, got {' and '.join(questions)}: choose --question")
    chosen = [vote for vote in votes if config.question in (None, vote.question)]
    if not chosen:
        wanted = f" on {config.question}" if config.question else ""
        raise ValueError(f"wanted votes{wanted}, got none in {', '.join(map(str, config.votes))}")
    return chosen


def rate(votes: Sequence[Vote], config: EloConfig) -> PreferenceRecord:
    """Rate the models of ``votes``, all on one question."""
    from flashbulb.distill.metrics.elo import Game, elo

    counted = [vote for vote in votes if config.draws == "half" or vote.choice != "equal"]
    if not counted:
        raise ValueError(f"all {len(votes)} votes are draws: nothing is left to rate with --draws drop")
    games = [
        Game(first=vote.left, second=vote.right, result=vote.result, unit=vote.picture or None)
        for vote in counted
    ]
    scores = elo(games, start=config.start, k=config.k, orders=config.orders, seed=config.seed)
    ratings = [
        Rating(model=model, elo=score.mean, **{f: getattr(score, f) for f in Rating.__struct_fields__[2:]})
        for model, score in sorted(scores.items(), key=lambda item: -item[1].mean)
    ]
    labels = _labels(votes)
    left_share, left_p = _side(votes)
    return PreferenceRecord(
        question=votes[0].question,
        votes=len(counted),
        start=config.start,
        k=config.k,
        orders=config.orders,
        seed=config.seed,
        draws=config.draws,
        ratings=ratings,
        matches=_matches(counted, [rating.model for rating in ratings]),
        voters={
            voter: sum(v.voter == voter for v in counted) for voter in sorted({v.voter for v in counted})
        },
        left_share=left_share,
        left_p=left_p,
        agreement=pairwise(labels),
        alpha=krippendorff(labels),
    )


def _labels(votes: Sequence[Vote]) -> dict[str, dict[object, str]]:
    """Return what each voter chose in each comparison: the name of a model, or a draw."""
    labels: dict[str, dict[object, str]] = {}
    for vote in votes:
        if vote.picture:
            chosen = {"left": f"model {vote.left}", "right": f"model {vote.right}"}.get(vote.choice, "draw")
            labels.setdefault(vote.voter, {})[vote.comparison[2:]] = chosen
    return labels


def _side(votes: Sequence[Vote]) -> tuple[float | None, float | None]:
    """Return the share of decided votes for the left side, and its p under a fair coin."""
    from scipy.stats import binomtest

    decided = [vote.choice == "left" for vote in votes if vote.choice != "equal"]
    if not decided:
        return None, None
    return sum(decided) / len(decided), float(binomtest(sum(decided), len(decided)).pvalue)


def _matches(votes: Sequence[Vote], models: Sequence[str]) -> list[Match]:
    """Count the games of every two models that met, the better rated one first."""
    found = []
    for first, second in combinations(models, 2):
        results = [
            v.result if v.left == first else 1 - v.result
            for v in votes
            if {v.left, v.right} == {first, second}
        ]
        if results:
            wins, losses, draws = (results.count(value) for value in (1.0, 0.0, 0.5))
            found.append(Match(first=first, second=second, wins=wins, losses=losses, draws=draws))
    return found
