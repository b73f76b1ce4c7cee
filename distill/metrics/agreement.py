"""How far people who judged the same things agree, beyond what chance would have them agree.

Every judgement is a label; ``labels[voter][thing]`` is the label that a voter gave to a thing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import combinations

import msgspec

Labels = Mapping[str, Mapping[object, str]]


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """Two voters beside each other."""

    first: str
    second: str
    common: int
    """Things that both judged."""
    same: float
    """Share of them that both judged alike."""
    kappa: float | None
    """Cohen's kappa: 1 for full agreement, 0 for chance; None where both only ever gave one label."""


def pairwise(labels: Labels) -> list[Agreement]:
    """Return the agreement of every two voters that judged something in common."""
    found = []
    for first, second in combinations(sorted(labels), 2):
        pairs = [(label, labels[second][t]) for t, label in labels[first].items() if t in labels[second]]
        if pairs:
            same, kappa = cohen(pairs)
            found.append(Agreement(first=first, second=second, common=len(pairs), same=same, kappa=kappa))
    return found


def cohen(pairs: list[tuple[str, str]]) -> tuple[float, float | None]:
    """Return the share of equal labels, and Cohen's kappa of it (Cohen 1960), None where that is 0/0."""
    n = len(pairs)
    same = sum(a == b for a, b in pairs) / n
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    chance = sum(count * second[label] for label, count in first.items()) / n**2
    return same, (None if chance == 1 else (same - chance) / (1 - chance))


def krippendorff(labels: Labels) -> float | None:
    """Return Krippendorff's alpha for nominal labels of any number of voters, not all of whom judged all.

    Coincidences of two labels within a thing are counted, each thing weighted by 1 / (voters - 1), and the
    disagreement among them is set in relation to that of all labels shuffled (Krippendorff, Content Analysis,
    chapter on reliability).

    Returns:
        1 for full agreement, 0 for chance; None where nothing was judged twice, or only one label was given.
    """
    things: dict[object, list[str]] = {}
    for given in labels.values():
        for thing, label in given.items():
            things.setdefault(thing, []).append(label)
    counted = [Counter(given) for given in things.values() if len(given) > 1]
    total = Counter[str]()
    for count in counted:
        total.update(count)
    n = total.total()
    apart = sum(_unlike(count) / (count.total() - 1) for count in counted)
    chance = _unlike(total) / (n - 1) if n > 1 else 0.0
    return None if chance == 0 else 1 - apart / chance


def _unlike(count: Counter[str]) -> int:
    """Return the number of ordered pairs of different labels."""
    return count.total() ** 2 - sum(c**2 for c in count.values())
