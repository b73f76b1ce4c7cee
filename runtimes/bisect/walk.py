"""Follow a program through its operations, and name the first that no activation of PyTorch is like."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from flashbulb.export.anatomy.listing import AnatomyError, Array, Node
from flashbulb.runtimes.bisect.reference import Reference

LIKE_DB = 30.0
"""What is as like an activation as this is meant to be it; steps inside a fused operation are like none."""
Values = Iterable[tuple[str, Array]]
"""Name of a value with what a runtime computed for it, in the order of the program."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Where a program departs from PyTorch."""

    node: Node
    """The first operation that departs."""
    snr_db: float
    """How like its result is to the activation that is most like it."""
    expected: str
    """That activation's module and operator."""
    before: str
    """The last operation in front of it that agrees, with its activation; empty where there is none."""
    finite: bool
    """Whether its result holds no NaN or infinity."""


@dataclass(frozen=True, slots=True)
class Walk:
    """What a comparison of all operations gave."""

    finding: Finding | None
    """The first operation that departs; None where the outputs agree."""
    compared: int
    """Operations whose results were seen."""
    agreed: int
    """Those that are like an activation of PyTorch."""
    poorer: Finding | None = None
    """Where the outputs agree: the first operation that is like its activation, but not as like as wanted."""


@dataclass(frozen=True, slots=True)
class _Seen:
    index: int
    """The activation that it is, -1 for none."""
    finite: bool
    values: Array | None
    """Kept where it is none."""

    @property
    def good(self) -> bool:
        """Whether it is one of PyTorch's activations."""
        return self.index >= 0


def walk(
    nodes: tuple[Node, ...],
    values: Values,
    outputs: Iterable[str],
    reference: Reference,
    floor_db: float,
    outputs_db: float | None = None,
) -> Walk:
    """Compare every value of a program with PyTorch's activations.

    An operation departs when its result is like none of them, and so is all that leads from it to an output:
    a step inside a fused or a split operation has no counterpart either, but what follows it has.

    Args:
        nodes: the program, in order.
        values: what was computed.
        outputs: names of its results.
        reference: PyTorch's activations.
        floor_db: least signal-to-noise ratio that counts as the same.
        outputs_db: the same of the results, where more is wanted of them.

    Raises:
        AnatomyError: when no value of an output was seen.
    """
    wanted = set(outputs)
    floors = dict.fromkeys(wanted, floor_db if outputs_db is None else outputs_db)
    seen = dict(_judged(values, floors, reference, floor_db))
    if missing := wanted - set(seen):
        raise AnatomyError(f"wanted the values of every output, got none of {sorted(missing)}")
    agreed = sum(s.good for s in seen.values())
    if all(seen[name].good for name in wanted):
        return Walk(None, len(seen), agreed, _poorer(nodes, seen, reference))
    bad = _departed(nodes, seen, wanted)
    finding = _finding(bad, nodes, seen, reference) if bad else None
    return Walk(finding, len(seen), agreed)


def _judged(
    values: Values, outputs: Mapping[str, float], reference: Reference, floor_db: float
) -> Iterator[tuple[str, _Seen]]:
    for name, value in values:
        flat = value.size < 2 or bool((value == value.flat[0]).all())
        if name not in outputs and (flat or value.dtype.kind != "f"):
            continue  # a tensor of one value is like many
        finite = bool(np.isfinite(value).all())
        index = reference.like(value, outputs.get(name, floor_db)) if finite and not flat else -1
        yield name, _Seen(index, finite, value if index < 0 else None)


def _departed(nodes: tuple[Node, ...], seen: Mapping[str, _Seen], outputs: set[str]) -> list[Node]:
    """Return the operations from which departed values alone lead to an output."""
    leads, found = set(outputs), []
    for node in reversed(nodes):
        if not leads.intersection(node.outputs) or any(seen[o].good for o in node.outputs if o in seen):
            continue
        leads.update(node.inputs)
        if any(o in seen for o in node.outputs):
            found.append(node)
    return found[::-1]


def _poorer(nodes: tuple[Node, ...], seen: Mapping[str, _Seen], told: Reference) -> Finding | None:
    """Find the first operation that has a counterpart, from which it differs more than it may.

    One whose counterpart another operation equals is a part of that: a product before its bias is added.
    """
    whole = {s.index for s in seen.values() if s.good}
    for node in nodes:
        for own in (seen[o] for o in node.outputs if o in seen and not seen[o].good):
            if not own.finite or (own.values is not None and _like(own.values, told) not in whole | {-1}):
                return _finding([node], nodes, seen, told)
    return None


def _like(values: Array, told: Reference) -> int:
    """Return the activation that a value is most like, -1 where it is not meant to be it."""
    return told.nearest(values)[0] if told.like(values, LIKE_DB) >= 0 else -1


def _finding(bad: list[Node], nodes: tuple[Node, ...], seen: Mapping[str, _Seen], told: Reference) -> Finding:
    """Choose the departed operation behind the earliest activation, in the order of PyTorch."""
    within = {o for n in bad for o in n.outputs}
    heads = [n for n in bad if not within.intersection(n.inputs)] or bad[:1]
    places = {id(n): _before(n, nodes, seen) for n in heads}
    node = min(heads, key=lambda n: seen[places[id(n)]].index if places[id(n)] else -1)
    own, before = next(seen[o] for o in node.outputs if o in seen), places[id(node)]
    last = seen[before].index if before else -1
    index, found = told.nearest(own.values) if own.values is not None and own.finite else (-1, -np.inf)
    expected = _expected(index, last, told)
    shown = f"{before!r} = {told.activations[last]}" if before else ""
    return Finding(node, found, expected, shown, own.finite)


def _before(node: Node, nodes: tuple[Node, ...], seen: Mapping[str, _Seen]) -> str:
    """Return the nearest value in front of an operation that agrees."""
    if good := [i for i in node.inputs if i in seen and seen[i].good]:
        return max(good, key=lambda name: seen[name].index)
    makers = {o: n for n in nodes for o in n.outputs}
    queue, known = list(node.inputs), set(node.inputs)
    while queue:
        name = queue.pop(0)
        if name in seen and seen[name].good:
            return name
        for other in makers[name].inputs if name in makers else ():
            if other not in known:
                known.add(other)
                queue.append(other)
    return ""


def _expected(nearest: int, last: int, reference: Reference) -> str:
    """Name the activation that should have come: the nearest of its size, or the next after the last good."""
    if nearest > last:
        return str(reference.activations[nearest])
    following = reference.activations[last + 1 : last + 2]
    return str(following[0]) if following else "the output"
