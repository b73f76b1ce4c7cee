"""A program that can be edited, whatever its file: constants, operations and attributes under one roof."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
SOFTMAX = ("Softmax", "softmax")
MOVES = ("Reshape", "reshape", "StaticReshape", "Transpose", "transpose", "StaticTranspose", "cast", "Cast")
PRODUCTS = ("MatMul", "FusedMatMul", "matmul", "BatchMatrixMultiply")


class Store:
    """One stored array."""

    def __init__(self, read: Callable[[], Array], write: Callable[[Array], None]) -> None:
        self.read, self.write = read, write

    def change(self, how: Callable[[Array], Array]) -> None:
        """Read, change a copy, write."""
        self.write(np.ascontiguousarray(how(self.read().copy())))


class Const:
    """One constant: its values, or its codes with their table or steps."""

    def __init__(self, name: str, values: Store, shape: tuple[int, ...], **parts: Store) -> None:
        self.name, self.values, self.shape, self.parts = name, values, shape, parts

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def zero(self) -> None:
        """Make it decode to zeros."""
        stored = self.parts.get("lut") or self.parts.get("scale") or self.values
        stored.change(np.zeros_like)


class Node(NamedTuple):
    """One operation."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ref: Any
    """What the editor knows it by."""


class View:
    """An opened program; subclasses fill in the constants and operations, and write the file."""

    def __init__(self) -> None:
        self.consts: dict[str, Const] = {}
        self.nodes: list[Node] = []
        self.inputs: tuple[str, ...] = ()
        self.decoders: list[Node] = []
        """What turns codes into weights, in front of those that take them."""

    def attributes(self, index: int) -> dict[str, Any]:
        """Return the attributes of an operation, where the format has such."""
        return {}

    def writable(self, index: int, name: str) -> bool:
        """Tell whether an attribute can be given another value."""
        return True

    def save(self) -> None:
        """Replace the files."""
        raise NotImplementedError

    def join_codes(self) -> None:
        """Take codes, their table or steps, and the nodes that decode them, for one constant."""
        for codes in [n for n in self.consts if n.endswith(".codes")]:
            name = codes.removesuffix(".codes")
            parts = {
                p: self.consts.pop(f"{name}.{p}").values
                for p in ("lut", "scale")
                if f"{name}.{p}" in self.consts
            }
            held = self.consts.pop(codes)
            self.consts[name] = Const(name, held.values, held.shape, **parts)
            made = {name, f"{name}.wide", f"{name}.index"}
            self.decoders += [n for n in self.nodes if n.outputs[0] in made]
            self.nodes = [n for n in self.nodes if n.outputs[0] not in made]

    def of(self, *ops: str) -> Iterator[tuple[int, Node]]:
        """Yield the operations of some kinds with their numbers."""
        return ((i, n) for i, n in enumerate(self.nodes) if n.op in ops)

    def floats(self) -> list[str]:
        """Name the constants of floats that hold at least sixteen values, codes left out."""
        return [
            n
            for n, c in self.consts.items()
            if not c.parts and c.size >= 16 and c.values.read().dtype.kind == "f"
        ]


class Attention(NamedTuple):
    """The weights of one attention, and the width of a head where it could be told."""

    query: str
    key: str
    value: str
    head: int | None
    cross: bool


def attentions(view: View) -> list[Attention]:
    """Find attentions: a softmax whose scores are the product of two projections."""
    makers = {name: node for node in view.nodes for name in node.outputs}
    users: dict[str, list[Node]] = {}
    for node in view.nodes:
        for name in node.inputs:
            users.setdefault(name, []).append(node)
    found = []
    for _, node in view.of(*SOFTMAX):
        scores = _back(view, makers, node.inputs[0], PRODUCTS)
        out = _forward(users, node.outputs[0], PRODUCTS)
        if scores is None or out is None or min(len(_data(view, n)) for n in (scores, out)) < 2:
            continue
        scale = view.attributes(view.nodes.index(scores)).get("alpha")
        sides = [_projection(view, makers, name) for name in (*_data(view, scores)[:2], _data(view, out)[1])]
        if all(sides):
            found.append(_attention(view, *sides, scale))  # type: ignore[arg-type]
    return found


class _Side(NamedTuple):
    weight: str
    source: str
    scale: float | None


def _attention(view: View, query: _Side, key: _Side, value: _Side, scale: float | None) -> Attention:
    scale = query.scale or key.scale or (scale if scale != 1.0 else None)
    head = round(scale**-2) if scale else None
    whole = head is not None and head > 0 and any(n % head == 0 for n in view.consts[query.weight].shape)
    return Attention(
        query.weight, key.weight, value.weight, head if whole else None, query.source != key.source
    )


def _source(view: View, makers: dict[str, Node], name: str) -> str:
    """Walk back over what only moves values."""
    while (node := makers.get(name)) is not None and node.op in MOVES and (data := _data(view, node)):
        name = data[0]
    return name


def _data(view: View, node: Node) -> list[str]:
    return [name for name in node.inputs if name and name not in view.consts]


def _back(view: View, makers: dict[str, Node], name: str, ops: tuple[str, ...]) -> Node | None:
    for _ in range(6):
        node = makers.get(name)
        if node is None or node.op in ops:
            return node
        data = _data(view, node)
        if not data:
            return None
        name = data[0]
    return None


def _forward(users: dict[str, list[Node]], name: str, ops: tuple[str, ...]) -> Node | None:
    for _ in range(3):
        nodes = users.get(name, [])
        for node in nodes:
            if node.op in ops:
                return node
        if not nodes:
            return None
        name = nodes[0].outputs[0]
    return None


def _projection(view: View, makers: dict[str, Node], name: str) -> _Side | None:
    """Walk from a factor of the scores back to the weight that made it; note a scalar on the way."""
    scale = None
    for _ in range(10):
        node = makers.get(name)
        if node is None:
            return None
        constants = [c for c in node.inputs if c in view.consts]
        for constant in constants:
            held = view.consts[constant]
            if len(held.shape) == 2 and held.size >= 64 and (data := _data(view, node)):
                return _Side(constant, _source(view, makers, data[0]), scale)
            if held.size == 1 and node.op in ("Mul", "mul", "Multiply") and not held.parts:
                value = float(held.values.read().reshape(-1)[0])
                scale = value if 0 < value < 1 else scale
        data = _data(view, node)
        if not data:
            return None
        name = data[0]
    return None
