"""Results of the table: one JSON file a row and training seed, and what several of them say together."""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Any

import msgspec

from flashbulb.distill.typed_json import decode
from flashbulb.distill.untrusted import UntrustedError


class Figures(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How good one set of pictures is; shares in 0..1 unless said otherwise."""

    retrieval_at_1: float
    retrieval_at_10: float
    background: float
    frechet: float
    """Frechet distance to the real pictures of the same captions, on judge features."""
    precision: float
    recall: float
    diversity: float
    """Mean cosine distance of pictures of one caption."""
    sharpness: float
    """Mean squared Laplacian."""


class Drawn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Figures of one way of drawing with one seed of prompts and noise."""

    draw: str
    seed: int
    figures: Figures


class Result(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What came of one row with one training seed."""

    row: str
    seed: int
    key: str
    """Hash of the recipe and the budget, see `Row.key`."""
    recipe: dict[str, Any] = {}
    """Recipe and budget with all defaults, see `Row.resolved`."""
    pictures: int
    """Pictures of one set."""
    drawn: tuple[Drawn, ...]
    train_s: float = 0.0
    """Wall-clock seconds of the distillations."""
    teacher_evaluations: int = 0
    """Pictures that the teacher looked at, with and without the text counted apart."""
    sha256: str = ""
    """Of the row's ``checkpoint``: what was judged, or the teacher of the first distillation."""
    precision: str = ""
    """Numbers that the networks computed with, in training and drawing."""
    device: str = ""
    """Name of the processor or GPU."""
    versions: dict[str, str] = {}
    """Of flashbulb, torch and diffusers."""

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.row}-{self.seed}.json"


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Mean and range of a figure over all seeds."""

    mean: float
    low: float
    high: float
    count: int

    def above(self, other: Spread) -> bool:
        """Tell whether the whole range lies above another's."""
        return self.low > other.high

    def __str__(self) -> str:
        """Write the mean and half of the range."""
        digits = 0 if abs(self.mean) >= 20 else 3 if abs(self.mean) < 0.2 else 2
        return f"{self.mean:.{digits}f} ± {(self.high - self.low) / 2:.{digits}f}"


def save(result: Result, folder: Path) -> None:
    """Write a result, renamed in when it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{result.name}.partial"
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    os.replace(partial, folder / result.name)


def load(folder: Path) -> list[Result]:
    """Read all results of a folder, in the order of their names.

    Raises:
        ValueError: for a file that is not a result.
    """
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            found.append(decode(file.read_bytes(), Result))
        except UntrustedError as error:
            raise ValueError(
                f"{file}: wanted a result of the table; {error}; delete it to run it anew"
            ) from error
    return found


class Table:
    """All results, read by row, draw and figure."""

    def __init__(self, results: list[Result]) -> None:
        self.results = results

    def rows(self) -> list[str]:
        """Return the names of the rows that there are results of."""
        return list(dict.fromkeys(r.row for r in self.results))

    def of(self, row: str) -> list[Result]:
        """Return a row's results, one a training seed."""
        return [r for r in self.results if r.row == row]

    def draws(self, row: str) -> list[str]:
        """Return the ways in which a row was drawn, its own first."""
        return list(dict.fromkeys(d.draw for r in self.of(row) for d in r.drawn))

    def values(self, row: str, figure: str, draw: str | None = None) -> list[float]:
        """Return a figure of a row for all seeds of training and evaluation."""
        wanted = draw or next(iter(self.draws(row)), "")
        return [float(getattr(d.figures, figure)) for r in self.of(row) for d in r.drawn if d.draw == wanted]

    def spread(self, row: str, figure: str, draw: str | None = None) -> Spread | None:
        """Return mean and range of a figure; nothing when the row was not drawn so."""
        values = self.values(row, figure, draw)
        if not values:
            return None
        return Spread(mean=statistics.fmean(values), low=min(values), high=max(values), count=len(values))
