"""Gates of one program that is taken apart: lines against their record, weights against the checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flashbulb.export.anatomy.listing import AnatomyError, Listing
from flashbulb.export.structure import Structure, differences
from flashbulb.runtimes.engines.base import EngineError
from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.gates import sanity
from flashbulb.runtimes.records import SanityRecord
from flashbulb.runtimes.sources import Sources
from flashbulb.runtimes.weights import judge_weights

OPEN_ERRORS = (AnatomyError, ProgramError, EngineError, OSError, MemoryError)
DECODE_ERRORS = (*OPEN_ERRORS, ValueError, LookupError, TypeError, ArithmeticError)
"""What numpy says of codes, tables and steps that do not fit one another comes on top."""
SHOWN_PROBLEMS = 3
UNOPENED = "cannot be taken apart"
"""What is said of a program that our own readers refuse; no runtime shall open it then."""


def unopened_gate(name: str, error: Exception) -> SanityRecord:
    """Say that a program cannot be read, and why."""
    reason = str(error) or type(error).__name__
    return sanity(f"structure.{name}", "bundle", False, f"{name} {UNOPENED}: {reason}")


def unopened(name: str, records: Iterable[object]) -> str | None:
    """Return the sentence of a program that could not be read, None for one that was."""
    found = (r for r in records if isinstance(r, SanityRecord) and r.gate == f"structure.{name}")
    return next((r.sentence for r in found if r.sentence.startswith(f"{name} {UNOPENED}")), None)


def lines_gate(
    name: str, listing: Listing, recorded: Structure | None, told: Sequence[str] = ()
) -> SanityRecord:
    """Hold a program's lines to its record; ``told`` is what is known to differ beside them."""
    gate = f"structure.{name}"
    if recorded is None:
        words = f"{name}: the bundle has no structure record; export it again to have one"
        return sanity(gate, "bundle", False, words)
    found = [*told, *differences(recorded.lines, listing.lines)]
    lines = len(recorded.lines)
    words = f"{name} has the {lines} operations and constants that were exported"
    if found:
        words = f"{name} differs from what was exported in {len(found)} of {lines} lines, first {found[0]}"
    return sanity(gate, "bundle", not found, words, value=float(len(found)), threshold=0.0)


def weight_gate(wanted: Sources, component: str, name: str, listing: Listing) -> SanityRecord:
    """Hold every stored weight to the checkpoint, by the rule of its code.

    Constants are decoded only now; damaged ones, which cannot be, fail.
    """
    gate = f"weights.{name}"
    try:
        found = judge_weights(listing, wanted, component)
    except DECODE_ERRORS as error:
        words = f"the weights of {name} cannot be read: {error}; export it again"
        return sanity(gate, "bundle", False, words)
    words = f"{name} holds the checkpoint's {found.matched} tensors, {found.values} values"
    if found.problems:
        more = len(found.problems) - SHOWN_PROBLEMS
        words = f"{name}: {'; '.join(found.problems[:SHOWN_PROBLEMS])}" + (
            f"; {more} more" if more > 0 else ""
        )
    good = not found.problems
    return sanity(gate, "bundle", good, words, value=float(found.wrong), threshold=0.0, unit="values")
