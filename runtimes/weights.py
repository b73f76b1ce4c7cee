"""The weight gate: each tensor that a program stores is one of the checkpoint's, up to its code's error.

What no tensor says must be the checkpoint's too, epsilons and forms of gelu: no picture shows a wrong one.
Floats must be the checkpoint's values rounded once to their type.  Codes come from the checkpoint too, and
its weights are what they decode to: steps and tables may be rounded to the stored type, and nothing else.
A weight that differs is named, and where.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from flashbulb.export.anatomy.listing import SHOWN, AnatomyError, Array, Constant, Listing, Node
from flashbulb.export.coreml_passes import LEAST_EPSILON
from flashbulb.runtimes.sources import TANH, Sources, Wanted, epsilon_trait

ROUNDINGS = 2.0
"""Spacings of the stored type that a coded value may be off: its step is rounded, and the product."""
ROOT, SUM = "ReciprocalSquareRoot", "Add"
"""XNNPACK's operations for a normalisation, which has no operation of its own there."""
FLOOR = "fill_like"
"""Core ML's operation for the root of an epsilon, which is scaled there like what it is added to."""
UNDER_ROOTS = (float(np.float32(LEAST_EPSILON)), 2.0**-24)
"""What coremltools adds under a root that is to have nothing added: a float32, or the smallest float16."""
ANOTHER_ROOT = "another number under a root than coremltools'"
EXACT = "EXACT"
"""Core ML's mode of the gelu that is no approximation, which is the default."""
STEP_SLACK = 1.001
"""Share of half a spacing that a rounded step may be off, since float32 was rounded before float16."""
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
    _judge_traits(verdict, listing, sources.traits_of(component))
    return verdict


def _judge_traits(verdict: Verdict, listing: Listing, wanted: Counter[str] | None) -> None:
    """Allow as many operations with a trait as the checkpoint has; a converter may drop some."""
    if wanted is None:
        return
    for trait, count in Counter(_traits(listing)).items():
        if count > wanted[trait]:
            verdict.wrong += count - wanted[trait]
            verdict.problems.append(f"{count} operations have {trait}, {wanted[trait]} in the checkpoint")


def _traits(listing: Listing) -> Iterator[str]:
    """Yield the trait of each operation that has one; a normalisation may be a sum and a root."""
    makers = {name: node for node in listing.nodes for name in node.outputs}
    for node in listing.nodes:
        if isinstance(epsilon := node.attributes.get("epsilon"), float):
            yield epsilon_trait(epsilon)
        elif node.attributes.get("approximate") == "tanh" or node.op.endswith("FastGelu"):
            yield TANH
        elif node.op == "gelu" and (mode := node.attributes.get("mode", EXACT)) != EXACT:
            yield TANH if str(mode).startswith("TANH") else f"gelu in mode {mode}"
        elif node.op == "batch_norm":
            kind = ANOTHER_ROOT if _is_affine(node, listing) else None
            yield from (kind or epsilon_trait(v) for v in _scalars(node, listing) if v not in UNDER_ROOTS)
        elif node.op == ROOT and (made := makers.get(node.inputs[0])) and made.op == SUM:
            yield from (epsilon_trait(v) for v in _scalars(made, listing))
        elif node.op == FLOOR:
            yield from (epsilon_trait(v * v) for v in _scalars(node, listing))
        elif node.op == "rsqrt" and any(v not in UNDER_ROOTS for v in _scalars(node, listing)):
            yield ANOTHER_ROOT


def _is_affine(node: Node, listing: Listing) -> bool:
    """Tell a product and a sum, which coremltools writes as a normalisation of mean 0 and variance 1."""
    held = [listing.constants[n].load() for n in node.inputs if n in listing.constants]
    flat = {float(v.flat[0]) for v in held if v.size > 1 and (v == v.flat[0]).all()}
    return flat >= {0.0, 1.0}


def _scalars(node: Node, listing: Listing) -> list[float]:
    """Return the single numbers that an operation is given."""
    held = [listing.constants[n].load() for n in node.inputs if n in listing.constants]
    return [float(v.flat[0]) for v in held if v.size == 1 and v.dtype.kind == "f"]


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
    if constant.table is not None:  # an entry is rounded once, as the value that it stands for
        return np.zeros(values.shape)
    if constant.scale is not None:
        return np.where(_steps_fit(stray, constant.scale(), values), ROUNDINGS * rounding, 0.0)
    if wanted.folded:
        return np.asarray(FOLD_SLACK * np.abs(values).max() + np.where(rounding > 1e-6, rounding / 2, 0.0))
    return np.zeros(values.shape)


def _steps_fit(stray: _Stray, steps: Array, values: Array) -> Array:
    """Tell where a value is its code times a step that was rounded once to the stored type."""
    exact = np.broadcast_to(steps, stray.values.shape).astype(np.float64).ravel()
    room = np.abs(np.spacing(exact.astype(stray.values.dtype))).astype(np.float64) / 2
    with np.errstate(all="ignore"):
        codes = np.rint(stray.values.astype(np.float64).ravel() / exact)
        fits = np.abs(codes * exact - values) <= np.abs(codes) * room * STEP_SLACK
    return np.asarray(fits)


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
