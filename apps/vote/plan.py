"""Which pictures are compared, in which order, and which of the two stands on the left."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from flashbulb.apps.vote.folders import Folder, Picture


class Pair(NamedTuple):
    """Two pictures of one prompt, side by side."""

    prompt: str
    left: Picture
    right: Picture


def plan(
    folders: Sequence[Folder],
    prompts: Mapping[str, str],
    *,
    seed: int,
    voter: str,
    limit: int | None = None,
) -> list[Pair]:
    """Return the comparisons of one voter.

    What is compared, and in which order, depends on the seed alone, so that voters who stop early have
    judged the same. It goes by rounds, in each of which every two models meet once. Sides are drawn for each
    voter, and each model stands on the left as often as on the right.
    """
    meetings = _meetings(folders, list(prompts), random.Random(seed))[:limit]
    sides = random.Random(f"{seed} {voter}")
    turned = {pair: _halves(len(meetings), sides) for pair in combinations(range(len(folders)), 2)}
    return [_pair(folders, pair, name, prompts, turned[pair].pop()) for pair, name in meetings]


def _meetings(
    folders: Sequence[Folder], names: Sequence[str], rng: random.Random
) -> list[tuple[tuple[int, int], str]]:
    pairs = list(combinations(range(len(folders)), 2))
    orders = {pair: rng.sample(names, len(names)) for pair in pairs}
    return [(pair, orders[pair][i]) for i in range(len(names)) for pair in rng.sample(pairs, len(pairs))]


def _halves(count: int, rng: random.Random) -> list[bool]:
    """Return ``count`` sides of which neighbours are one of each, in random order."""
    sides: list[bool] = []
    while len(sides) < count:
        sides += rng.sample([True, False], 2)
    return sides[:count]


def _pair(
    folders: Sequence[Folder], pair: tuple[int, int], name: str, prompts: Mapping[str, str], turned: bool
) -> Pair:
    left, right = (folders[i].pictures[name] for i in (pair[::-1] if turned else pair))
    return Pair(prompts[name], left, right)
