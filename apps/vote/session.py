"""What one voter has been asked and what comes next."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from flashbulb.apps.vote.ledger import Ledger
from flashbulb.apps.vote.plan import Pair
from flashbulb.distill.metrics.votes import Choice, Comparison, Question, Vote


class NotAsked(ValueError):
    """A vote on something else than what is being asked."""


class Session:
    """The comparisons of one voter over the ledger; safe to use from several threads."""

    def __init__(
        self, pairs: Sequence[Pair], ledger: Ledger, *, voter: str, question: Question, equal: bool = True
    ) -> None:
        self.pairs, self.voter, self.question, self.equal = pairs, voter, question, equal
        self._ledger, self._lock = ledger, threading.Lock()
        self._numbers = {self._comparison(pair): number for number, pair in enumerate(pairs)}
        self._hashes = {(p.model, p.name): p.sha256 for pair in pairs for p in (pair.left, pair.right)}
        self._voted: dict[Comparison, Vote] = {}
        with ledger.hold() as news:
            self._take(news)

    @property
    def file(self) -> Path:
        """Where the votes are."""
        return self._ledger.file

    @property
    def done(self) -> int:
        """Number of comparisons voted on."""
        return len(self._voted)

    def current(self) -> int | None:
        """Return the number of the comparison to ask now, None when all are done."""
        return next((n for c, n in self._numbers.items() if c not in self._voted), None)

    def ahead(self, count: int = 2) -> list[Pair]:
        """Return the comparisons after the current one."""
        open_ones = [n for c, n in self._numbers.items() if c not in self._voted]
        return [self.pairs[number] for number in open_ones[1 : count + 1]]

    def vote(self, number: int, choice: Choice, seconds: float = 0.0) -> None:
        """Write down the choice in the current comparison.

        Raises:
            NotAsked: when another comparison is current, or a draw is not on offer.
            OSError: when the vote could not be written.
        """
        with self._lock, self._ledger.hold() as news:
            self._take(news)
            if choice == "undo" or (choice == "equal" and not self.equal):
                raise NotAsked(f"{choice!r} is not on offer")
            if number != self.current():
                raise NotAsked(f"comparison {number} is not being asked; it may have been voted on elsewhere")
            self._add(self.pairs[number], choice, seconds)

    def undo(self) -> None:
        """Take back this voter's last vote; the comparison is asked again.

        Raises:
            NotAsked: when there is none.
        """
        with self._lock, self._ledger.hold() as news:
            self._take(news)
            if not self._voted:
                raise NotAsked("there is no vote to take back")
            last = next(reversed(self._voted))
            self._add(self.pairs[self._numbers[last]], "undo", 0.0)

    def _add(self, pair: Pair, choice: Choice, seconds: float) -> None:
        vote = Vote(
            left=pair.left.model,
            right=pair.right.model,
            choice=choice,
            voter=self.voter,
            question=self.question,
            picture=pair.left.name,
            prompt=pair.prompt,
            left_sha256=pair.left.sha256,
            right_sha256=pair.right.sha256,
            seconds=round(seconds, 3),
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
        self._ledger.add(vote)
        self._take([vote])

    def _take(self, news: Iterable[Vote]) -> None:
        """Follow the ledger: what this voter voted on, and took back."""
        for vote in news:
            self._check(vote)
            if vote.comparison in self._numbers:
                self._voted.pop(vote.comparison, None)
                if vote.choice != "undo":
                    self._voted[vote.comparison] = vote

    def _check(self, vote: Vote) -> None:
        """Refuse a file whose votes are on other pictures of the same names."""
        for model, sha256 in ((vote.left, vote.left_sha256), (vote.right, vote.right_sha256)):
            here = self._hashes.get((model, vote.picture), "")
            if sha256 and here and sha256 != here:
                raise ValueError(
                    f"{self._ledger.file} holds votes on another picture {vote.picture!r} of {model}: "
                    "wanted the same pictures to go on, or another file with --out"
                )

    def _comparison(self, pair: Pair) -> Comparison:
        first, second = sorted((pair.left.model, pair.right.model))
        return Comparison(self.voter, self.question, pair.left.name, (first, second))
