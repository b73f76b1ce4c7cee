"""The weight gate: each tensor that a program stores is one of the checkpoint's, up to its code's error.

Floats must be the checkpoint's values rounded once to their type.  Codes come from the checkpoint too, and
its weights are what they decode to: steps and tables may be rounded to the stored type, and nothing else.
A weight that differs is named, and where.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from flashbulb.export.anatomy.listing import SHOWN, AnatomyError, Array, Constant, Listing
from flashbulb.runtimes.sources import Sources, Wanted

ROUNDINGS = 2.0
"""Spacings of the stored type that a coded value may be off: its step is rounded, and the product."""
FOLD_SLACK = 2e-6
"""Largest difference of a folded bias, relative to its largest value: float32 sums in another order."""


@dataclass(slots=True)
class Verdict:
    """What was found of one program's weights."""

    matched: int = 0
    """Tensors of the checkpoint that were found."""
    values: int = 0
    """Stored values that were compared."""
    wrong: int = 0
    """Values that differ, or belong to no tensor of the checkpoint."""
    problems: list[str] = field(default_factory=list)
    """One sentence part for each tensor that is wrong or missing."""


@dataclass(frozen=True, slots=True)
class _Stray:
    """A constant that is no tensor of the checkpoint as it stands."""

    name: str
    values: Array
    constant: Constant


@dataclass(frozen=True, slots=True)
class _Near:
    """How a stray constant differs from one tensor."""

    wanted: Wanted
    bad: Array
    """Flat indices that differ beyond what the code allows."""
    form: Array
    distance: float
    """Mean square difference, to choose among tensors."""


def judge_weights(listing: Listing, sources: Sources, component: str) -> Verdict:
    """Match the constants of a program with the tensors of a component."""
    verdict, found, strays = Verdict(), set[str](), []
    allowed = {w.name for w in sources.of(component)}
    for name, constant in listing.constants.items():
        values = _floats(constant)
        if values is None:
            continue
        names = allowed.intersection(sources.named(values))
        verdict.values += values.size if names else 0
        found |= names
        if not names and not _is_attribute(values):
            strays.append(_Stray(name, values, constant))
    for stray in strays:
        near = _nearest(stray, [w for w in sources.of(component) if w.name not in found])
        near = near if near and not len(near.bad) else near or _nearest(stray, sources.of(component))
        if near:
            found.add(near.wanted.name)
        _note(verdict, stray, near)
    missing = [w for w in sources.of(component) if w.required and not w.trivial and w.name not in found]
    for wanted in missing:
        verdict.wrong += wanted.values.size
        verdict.problems.append(f"{wanted.name} is in the program in no form")
    verdict.matched = len(found)
    return verdict


def _floats(constant: Constant) -> Array | None:
    """Return a constant's values; None for integers and truth values, which no checkpoint has."""
    values = constant.load()
    return values if values.dtype.kind == "f" and values.size > 1 else None


def _is_attribute(values: Array) -> bool:
    """Tell constants that describe an operation rather than hold a weight: few values, or all the same."""
    return values.size <= SHOWN or bool((values == values.flat[0]).all())


def _nearest(stray: _Stray, candidates: Iterable[Wanted]) -> _Near | None:
    """Return the tensor that a stray constant is most like, None where none has as many values."""
    found = [
        _compare(stray, wanted, form)
        for wanted in candidates
        if wanted.values.size == stray.values.size
        for form in wanted.forms()
    ]
    return min(found, key=lambda n: (len(n.bad), n.distance), default=None)


def nearly(values: Array, candidates: Iterable[Wanted]) -> Array | None:
    """Return the float32 values of a tensor that some stored ones are up to what its code allows, flat."""
    near = _nearest(_Stray("", values, Constant(lambda: values)), candidates)
    return near.form if near and not len(near.bad) else None


def _compare(stray: _Stray, wanted: Wanted, form: Array) -> _Near:
    """Hold a stray constant to one tensor by the rule of its code."""
    got = stray.values.astype(np.float64).ravel()
    with np.errstate(over="ignore"):
        rounded = form.astype(stray.values.dtype).astype(np.float64).ravel()
    with np.errstate(invalid="ignore"):
        error = np.abs(got - rounded)
    bad = ~(error <= _allowed(stray, wanted, form.astype(np.float64).ravel()))
    distance = float(np.mean(error**2)) if np.isfinite(error).all() else np.inf
    return _Near(wanted, np.flatnonzero(bad), form.ravel(), distance)


def _allowed(stray: _Stray, wanted: Wanted, values: Array) -> Array:
    """Return the largest difference that each value may have."""
    constant = stray.constant
    rounding = np.abs(np.spacing(values.astype(stray.values.dtype))).astype(np.float64)
    if constant.scale is not None or constant.table is not None:
        return ROUNDINGS * rounding
    if wanted.folded:
        return np.asarray(FOLD_SLACK * np.abs(values).max() + np.where(rounding > 1e-6, rounding / 2, 0.0))
    return np.zeros(values.shape)


def _note(verdict: Verdict, stray: _Stray, near: _Near | None) -> None:
    """Count a stray constant, and say what is wrong with it."""
    if near is None:
        verdict.wrong += stray.values.size
        shape = list(stray.values.shape)
        verdict.problems.append(
            f"the constant {stray.name!r} {shape} has no tensor of its size in the checkpoint"
        )
        return
    verdict.values += stray.values.size
    if not len(near.bad):
        return
    verdict.wrong += len(near.bad)
    first = int(near.bad[0])
    got, wanted = float(stray.values.ravel()[first]), float(near.form[first])
    verdict.problems.append(
        f"{len(near.bad)} of {stray.values.size} values of {near.wanted.name} are not the checkpoint's, "
        f"first number {first}: stored {got:.6g}, wanted {wanted:.6g} (constant {stray.name!r})"
    )


__all__ = ["AnatomyError", "Verdict", "judge_weights"]
