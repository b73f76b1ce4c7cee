"""An `.ort` file that can be edited in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mutants.fault import replace
from mutants.flat import Table
from mutants.view import Array, Const, Node, Store, View

TYPES = {1: "<f4", 2: "|u1", 3: "|i1", 6: "<i4", 7: "<i8", 9: "|b1", 10: "<f2", 11: "<f8"}
"""numpy's words for ONNX's element types."""
FLOAT, INT, TEXT, INTS = 1, 2, 3, 7
"""Kinds of attributes."""


class OrtView(View):
    """The graph in the runtime's own format."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.data = path, bytearray(path.read_bytes())
        model = Table.root(self.data).table(1)
        graph = model.table(7) if model else None
        if graph is None:
            raise ValueError(f"wanted a graph in {path.name}, got none")
        self.inputs = tuple(graph.texts(5))
        for tensor in graph.tables(0):
            self._add(tensor)
        self.nodes = [
            Node(t.text(5), tuple(t.texts(8)), tuple(t.texts(9)), t) for t in _ordered(graph.tables(2))
        ]
        self.join_codes()

    def _add(self, tensor: Table) -> None:
        name, kind = tensor.text(0), TYPES.get(tensor.number(3, "i"))
        start, count = tensor.span(4)
        if kind is None or not count:
            return
        shape = tuple(tensor.numbers(2, "q"))
        self.consts[name] = Const(name, stored(self.data, start, count, kind, shape), shape)

    def attributes(self, index: int) -> dict[str, Any]:
        """Return the attributes of an operation."""
        return {a.text(0): _value(a) for a in self.nodes[index].ref.tables(10)}

    def writable(self, index: int, name: str) -> bool:
        """Tell whether an attribute is stored: a zero is not, and has no bytes to write over."""
        found = next(a for a in self.nodes[index].ref.tables(10) if a.text(0) == name)
        field = {INT: 4, FLOAT: 3}.get(found.number(2, "i"))
        return field is None or found.at(field) is not None

    def set_attribute(self, index: int, name: str, value: Any) -> None:
        """Write over an attribute of as many bytes."""
        found = next(a for a in self.nodes[index].ref.tables(10) if a.text(0) == name)
        kind = found.number(2, "i")
        if kind == INTS:
            found.put_numbers(9, "q", value)
        elif kind == TEXT:
            place = found.follow(5)
            assert place is not None
            assert len(value) == int.from_bytes(self.data[place : place + 4], "little")
            self.data[place + 4 : place + 4 + len(value)] = value
        else:
            assert found.put(*((3, "f") if kind == FLOAT else (4, "q")), value), name

    def save(self) -> None:
        """Write the bytes."""
        replace(self.path, bytes(self.data))


def _ordered(tables: list[Table]) -> list[Table]:
    return sorted(tables, key=lambda t: t.number(4))


def _value(attribute: Table) -> Any:
    kind = attribute.number(2, "i")
    if kind == FLOAT:
        return attribute.number(3, "f", 0.0)
    if kind == INT:
        return attribute.number(4, "q", 0)
    return attribute.text(5).encode() if kind == TEXT else attribute.numbers(9, "q")


def stored(data: bytearray, start: int, count: int, kind: str, shape: tuple[int, ...]) -> Store:
    """Make an array out of a stretch of bytes."""

    def read() -> Array:
        return np.frombuffer(bytes(data[start : start + count]), kind).reshape(shape)

    def write(values: Array) -> None:
        found = np.ascontiguousarray(values, dtype=kind).tobytes()
        assert len(found) == count
        data[start : start + count] = found

    return Store(read, write)
