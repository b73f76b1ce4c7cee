"""Two programs run in turns until their ratio is on one side of a limit, or the time is up."""

from __future__ import annotations

import math
import time
from typing import NamedTuple, Protocol

from flashbulb.runtimes.ratio import CONFIDENCE, LEAST_TURNS, Interval, ratio_interval
from flashbulb.runtimes.records import Decision
from flashbulb.runtimes.worker import Timed

LOOKS = (12, 24, 48)
"""Pairs of turns after which the ratio is looked at; each look spends its share of the error allowed."""
TURN_MS = 100.0
"""A turn is as many runs as take about this long, at most `MOST_RUNS`."""
MOST_RUNS = 5
WARMUP = 2
"""Runs of each side before the first turn."""


class Runner(Protocol):
    """What can run a target a few times: a worker."""

    def turn(self, target: str, count: int) -> Timed:
        """Run it."""
        ...


class Race(NamedTuple):
    """What the turns came to."""

    interval: Interval | None
    """Ratio of the first program's time to the second's; None where the time was too short."""
    turns: int
    """Pairs of turns."""
    decision: Decision
    """Judgement against the limit."""


def race(mine: Runner, theirs: Runner, targets: tuple[str, str], *, limit: float, seconds: float) -> Race:
    """Let two programs take turns, who begins alternating, and decide whether the first is too slow.

    The interval is looked at after 12, 24 and 48 pairs, each time with a third of the 5 % of error allowed
    (Bonferroni), so that looking early does not make a wrong verdict likelier.

    Args:
        mine: the program on trial.
        theirs: what it is compared with.
        targets: what each of them runs.
        limit: largest ratio of times that passes.
        seconds: time after which no further pair is begun.
    """
    begin = time.monotonic()
    sides = [_Side(mine, targets[0]), _Side(theirs, targets[1])]
    found = Race(None, 0, "undecided")
    for pair in range(1, LOOKS[-1] + 1):
        for side in sides if pair % 2 else reversed(sides):
            side.go()
        late = time.monotonic() - begin > seconds
        found = found._replace(turns=pair)
        if pair in LOOKS or (late and pair >= LEAST_TURNS):
            found = _look(sides[0].turns, sides[1].turns, limit)
        if found.decision != "undecided" or late:
            break
    return found


def _look(mine: list[list[float]], theirs: list[list[float]], limit: float) -> Race:
    share = (1.0 - CONFIDENCE) / len(LOOKS)
    interval = ratio_interval(mine, theirs, confidence=1.0 - share)
    return Race(interval, len(mine), interval.decide(limit) if interval else "undecided")


class _Side:
    """One program and its turns."""

    def __init__(self, runner: Runner, target: str) -> None:
        self.runner, self.target = runner, target
        fastest = min(runner.turn(target, 1 + WARMUP).wall_ms)
        self.runs = max(1, min(MOST_RUNS, math.ceil(TURN_MS / max(fastest, 1e-3))))
        self.turns: list[list[float]] = []

    def go(self) -> None:
        self.turns.append(list(self.runner.turn(self.target, self.runs).wall_ms))
