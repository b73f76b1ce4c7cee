"""Preferences of people as a file: one JSON object a line, as `flashbulb vote` writes and anybody can.

The least line is ``{"left": "student", "right": "teacher", "choice": "left"}``. Lines are only ever added: a
vote is taken back by a line whose choice is ``undo``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec

from flashbulb.distill.typed_json import decode
from flashbulb.distill.untrusted import UntrustedError

log = logging.getLogger(__name__)

Question = Literal["quality", "alignment"]
Choice = Literal["left", "right", "equal", "undo"]


class Comparison(NamedTuple):
    """What one voter is asked once: pictures of one name from two models, whichever stands on the left."""

    voter: str
    question: str
    picture: str
    models: tuple[str, str]


class Vote(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One preference."""

    left: str
    """Model whose picture stood on the left."""
    right: str
    """Model whose picture stood on the right."""
    choice: Choice
    """The side that was preferred, ``equal`` for a draw, or ``undo``: the voter took the last vote back."""
    voter: str = "anonymous"
    """Who voted."""
    question: Question = "quality"
    """What was asked: which picture is better, or which shows the words better."""
    picture: str = ""
    """Name that the two pictures share, the same for the same prompt and noise."""
    prompt: str = ""
    """The words above the pictures."""
    left_sha256: str = ""
    """Start of the left picture's hash."""
    right_sha256: str = ""
    """Start of the right picture's hash."""
    seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Time between showing the pictures and the vote."""
    time: str = ""
    """When, in ISO 8601 and UTC."""

    @property
    def comparison(self) -> Comparison:
        """What was asked, of whom."""
        first, second = sorted((self.left, self.right))
        return Comparison(self.voter, self.question, self.picture, (first, second))

    @property
    def result(self) -> float:
        """Score of the left model: 1, 0, or 0.5 for a draw."""
        return {"left": 1.0, "right": 0.0}.get(self.choice, 0.5)


def read_votes(files: Iterable[Path]) -> list[Vote]:
    """Return the votes of several files that stand: neither taken back nor given again later.

    Raises:
        ValueError: for a line that is no vote.
        FileNotFoundError: for a file that is not there.
    """
    votes: list[Vote] = []
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"no votes {str(file)!r}: wanted a file that flashbulb vote wrote")
        votes += parse_votes(file.read_bytes(), file)
    return standing(votes)


def parse_votes(content: bytes, file: Path) -> list[Vote]:
    """Decode lines; one that was cut off at the end of the file by a kill is left out, and said to be."""
    *lines, rest = content.split(b"\n")
    votes = [_vote(line, file, number) for number, line in enumerate(lines, 1) if line.strip()]
    if not rest.strip():
        return votes
    try:
        return [*votes, decode(rest, Vote)]
    except UntrustedError:
        log.warning("%s: its last line was cut off and is left out", file)
        return votes


def standing(votes: Iterable[Vote]) -> list[Vote]:
    """Return the votes that neither an ``undo`` nor a later vote on the same comparison has replaced.

    Votes without a name of a picture cannot be told apart: all of them stand.
    """
    named: dict[object, Vote] = {}
    again = 0
    for number, vote in enumerate(votes):
        key = vote.comparison if vote.picture else (vote.comparison, number)
        former = named.pop(key, None)
        if vote.choice == "undo":
            continue
        again += former is not None
        named[key] = vote
    if again:
        log.warning(
            "%d comparisons were voted on more than once by the same voter; the last vote counts", again
        )
    return list(named.values())


def _vote(line: bytes, file: Path, number: int) -> Vote:
    try:
        vote = decode(line, Vote)
    except UntrustedError as error:
        raise ValueError(
            f"{file}, line {number}: {error}; wanted one vote a line, "
            'at least {"left": "A", "right": "B", "choice": "left"}'
        ) from error
    if vote.left == vote.right:
        raise ValueError(f"{file}, line {number}: wanted two models, got {vote.left!r} against itself")
    return vote
