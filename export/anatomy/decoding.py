"""ONNX graphs of either file format: nodes that only decode constants are constants themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from flashbulb.export.anatomy.listing import AnatomyError, Array, Constant, Listing, Node, arrange, spell

Raw = Callable[[], Array]
MOST_GROWTH, LEAST_GROWTH = 8, 1 << 16
"""How many values may be decoded out of each stored one, and how many in any case."""
CASTS = {1: np.float32, 6: np.int32, 7: np.int64, 10: np.float16}


@dataclass(frozen=True, slots=True)
class RawNode:
    """One node as the file has it."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """Everything that decides what it computes."""
        options = " ".join(f"{k}={_spelled(v)}" for k, v in sorted(self.attributes.items()))
        return f"{self.op}({', '.join(self.inputs)}) -> {', '.join(self.outputs)} {options}".rstrip()


@dataclass(frozen=True, slots=True)
class RawGraph:
    """A graph as a file has it."""

    nodes: Sequence[RawNode]
    raws: Mapping[str, Raw]
    """Stored constants."""
    inputs: Sequence[str]
    outputs: Sequence[str]
    opsets: Mapping[str, int]


def build(graph: RawGraph) -> Listing:
    """Make a listing: decode what is constant, order the rest."""
    held, raws = graph.nodes, graph.raws
    lines = {n.outputs[0] if n.outputs else n.op: n.line for n in held}
    stored = 0
    for name, load in raws.items():
        values = load()
        stored += values.size
        lines[name] = f"constant {spell(values)}"
    lines["(inputs)"], lines["(outputs)"] = ", ".join(graph.inputs), ", ".join(graph.outputs)
    lines["(opsets)"] = ", ".join(f"{k} {v}" for k, v in sorted(graph.opsets.items()))
    constants = {name: Constant(load) for name, load in raws.items()}
    ordered = arrange(
        Node(n.op, tuple(i for i in n.inputs if i), n.outputs, n.line, n.attributes) for n in held
    )
    by_output = {n.outputs[0]: n for n in held if n.outputs}
    left, consumed = [], set[str]()
    for node in ordered:
        decoded = _decoded(by_output[node.outputs[0]], constants, stored) if node.outputs else None
        if decoded is None:
            left.append(node)
            continue
        constants[node.outputs[0]] = decoded
        consumed |= set(node.inputs)
    used = {i for n in left for i in n.inputs}
    kept = {n: c for n, c in constants.items() if n not in consumed or n in used}
    return Listing(nodes=tuple(left), constants=kept, lines=lines)


def _decoded(node: RawNode, known: Mapping[str, Constant], stored: int) -> Constant | None:
    """Return the constant that a node decodes from stored ones, None where it computes something else."""
    if not node.inputs or any(i not in known for i in node.inputs):
        return None
    parts = [known[i] for i in node.inputs]
    if node.op == "Cast" and node.attributes.get("to") in CASTS:
        kind = CASTS[int(node.attributes["to"])]
        return Constant(lambda: parts[0].load().astype(kind))
    if node.op == "Gather" and node.attributes.get("axis", 0) == 0 and len(parts) == 2:
        return Constant(partial(_take, parts[0], parts[1], stored), table=parts[0].load)
    if node.op == "Mul" and len(parts) == 2:
        return Constant(partial(_scaled, parts[0], parts[1], stored), scale=parts[1].load)
    return None


def _room(shape: tuple[int, ...], stored: int) -> None:
    """Refuse a constant that is far larger than all from which it could be decoded."""
    if (count := math.prod(shape)) > MOST_GROWTH * stored + LEAST_GROWTH:
        raise AnatomyError(
            f"wanted a constant of at most {MOST_GROWTH} times the {stored} values that are stored, "
            f"got {count}; do not use it"
        )


def _scaled(codes: Constant, steps: Constant, stored: int) -> Array:
    factors = codes.load(), steps.load()
    _room(np.broadcast_shapes(*(f.shape for f in factors)), stored)
    return np.multiply(*factors)


def _take(table: Constant, index: Constant, stored: int) -> Array:
    entries, codes = table.load(), index.load()
    _room((*codes.shape, *entries.shape[1:]), stored)
    if codes.size and (int(codes.min()) < 0 or int(codes.max()) >= len(entries)):
        raise AnatomyError(f"wanted codes under {len(entries)}, got up to {int(codes.max())}")
    return entries[codes]


def _spelled(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return spell(value)
    return repr(value) if isinstance(value, str) else str(value)
