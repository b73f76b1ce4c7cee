"""Conditions on figures, such as ``retrieval_at_1>=0.6``: what makes ``flashbulb eval`` fail."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from flashbulb.distill.metrics.figures import Figure

COMPARISONS = {">=": operator.ge, "<=": operator.le}


class Gate(NamedTuple):
    """A bound on the value of one figure."""

    figure: str
    comparison: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Read ``FIGURE>=NUMBER`` or ``FIGURE<=NUMBER``.

        Raises:
            ValueError: for anything else.
        """
        found = re.fullmatch(r"\s*(\w+)\s*(>=|<=)\s*([-+.\deE]+)\s*", text)
        try:
            return cls(found[1], found[2], float(found[3]))  # type: ignore[index]
        except (TypeError, ValueError):
            raise ValueError(f"wanted a condition such as frechet<=450, got {text!r}") from None

    def failure(self, figures: Mapping[str, Figure]) -> str | None:
        """Return what is wrong, or None when the figure holds the bound.

        Raises:
            ValueError: for a figure that was not measured.
        """
        if self.figure not in figures:
            known = ", ".join(figures)
            raise ValueError(f"wanted a condition on one of {known}, got one on {self.figure!r}")
        value = figures[self.figure].value
        holds: Any = COMPARISONS[self.comparison]
        if holds(value, self.bound):  # false for what is not a number
            return None
        return f"wanted {self.figure} {self.comparison} {self.bound:g}, got {value:.4g}"
