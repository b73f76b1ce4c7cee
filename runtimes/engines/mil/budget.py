"""What a program may use: bytes of values, and turns of loops, summed over everything that it does at once.

A package of a few kilobytes can ask for a tensor of any size and for loops inside loops.  What its weights
explain is let through; what they do not is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from flashbulb.runtimes.engines.mil.errors import ProgramError

ELEMENT_BYTES = 4
"""What an element takes at least once it is a tensor here: halves are held as float32."""
LEAST_BYTES = 2 << 30
"""What any program may have live: a decoder of a few megabytes draws 1024 pixels a side within it."""
PER_WEIGHT = 64
"""Bytes of values that each stored byte of a weight explains beyond that."""
MAX_TURNS = 1 << 16
"""Turns of all loops of one prediction together: decoding a text takes hundreds."""


@dataclass(slots=True)
class Budget:
    """Bounds, and what is used of them: constants while they are kept, the rest anew in each prediction."""

    max_bytes: int = LEAST_BYTES
    max_turns: int = MAX_TURNS
    kept: int = 0
    """Bytes of the constants in memory."""
    live: int = 0
    """Bytes of the values that somebody still needs."""
    turns: int = 0
    sizes: dict[int, int] = field(default_factory=dict)
    """Slot -> bytes of what it holds."""

    def begin(self) -> None:
        """Begin a prediction."""
        self.live = self.turns = 0
        self.sizes.clear()

    def turn(self) -> None:
        """Count one turn of a loop.

        Raises:
            ProgramError: when there were too many.
        """
        self.turns += 1
        if self.turns > self.max_turns:
            raise ProgramError(
                f"wanted at most {self.max_turns} turns of all loops; they do not end, or max_turns= is low"
            )

    def fits(self, count: int) -> None:
        """Refuse a value of so many elements that there is no room for, before it is made.

        Raises:
            ProgramError: with both sizes.
        """
        self._refuse(self.live + count * ELEMENT_BYTES)

    def hold(self, slot: int, value: Any) -> None:
        """Count what a slot holds from now on."""
        size = size_bytes(value)
        self.live += size - self.sizes.get(slot, 0)
        self.sizes[slot] = size
        self._refuse(self.live)

    def release(self, slot: int) -> None:
        """Forget what a slot held."""
        self.live -= self.sizes.pop(slot, 0)

    def keep(self, value: Any) -> None:
        """Count a constant that stays in memory."""
        self.kept += size_bytes(value)
        self._refuse(self.kept)

    def _refuse(self, wanted: int) -> None:
        if wanted > self.max_bytes:
            raise ProgramError(
                f"wanted values of at most {self.max_bytes} bytes at once, this program makes {wanted}; "
                "do not use it, or raise max_bytes="
            )


def size_bytes(value: Any) -> int:
    """Return the bytes of a tensor, a state, or a list of tensors; one that is there twice counts once."""
    if hasattr(value, "nbytes"):
        return int(value.nbytes)
    if isinstance(value, list):
        return 8 * len(value) + sum(size_bytes(v) for v in {id(v): v for v in value}.values())
    return int(getattr(getattr(value, "value", None), "nbytes", 0))


def explained(weights: Mapping[str, Any]) -> int:
    """Return how many bytes of values the weights of a package explain."""
    return LEAST_BYTES + PER_WEIGHT * sum(int(w.nbytes) for w in weights.values())


_CURRENT: ContextVar[Budget | None] = ContextVar("budget", default=None)


def current() -> Budget:
    """Return the budget of the program that runs; an operation on its own has one of its own."""
    return _CURRENT.get() or Budget()


@contextmanager
def spending(budget: Budget) -> Iterator[Budget]:
    """Let what runs inside use a budget."""
    token = _CURRENT.set(budget)
    try:
        yield budget
    finally:
        _CURRENT.reset(token)
