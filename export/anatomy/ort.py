"""Take an `.ort` file apart: ONNX Runtime's own format, a flatbuffer (schema `onnxruntime.fbs`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flashbulb.export.anatomy.decoding import RawGraph, RawNode, build
from flashbulb.export.anatomy.flat import Reading, Table
from flashbulb.export.anatomy.listing import AnatomyError, Array, Listing

MARK = b"ORTM"
DTYPES = {
    1: "<f4", 2: "|u1", 3: "|i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 9: "|b1", 10: "<f2", 11: "<f8",
    12: "<u4", 13: "<u8",
}  # fmt: skip
"""Numbers of ONNX's element types, here and in `.onnx` files."""
FLOAT, INT, TEXT, TENSOR, FLOATS, INTS, TEXTS = 1, 2, 3, 4, 6, 7, 8
"""Numbers of the kinds of attributes."""


def read_ort(path: Path) -> Listing:
    """Read an `.ort` file.

    Raises:
        AnatomyError: when it is damaged, or something else.
    """
    graph, reading = _opened(path)
    found = build(graph)
    reading.end()
    return found


def raw_ort(path: Path) -> RawGraph:
    """Read the graph of an `.ort` file as it stands.

    Raises:
        AnatomyError: when it is damaged, or something else.
    """
    return _opened(path)[0]


def _opened(path: Path) -> tuple[RawGraph, Reading]:
    data = memoryview(path.read_bytes())
    if len(data) < 8 or bytes(data[4:8]) != MARK:
        raise AnatomyError(f"wanted the mark {MARK!r} in {path.name}, got {bytes(data[4:8])!r}")
    reading = Reading(len(data))
    model = Table.root(data, reading=reading).table(1)
    graph = model.table(7) if model else None
    if model is None or graph is None:
        raise AnatomyError(f"wanted a graph in {path.name}, got none; export it again")
    opsets = {t.text(0) or "ai.onnx": t.integer(1, "q") for t in model.tables(1)}
    raws = {t.text(0): partial(_values, t) for t in graph.tables(0)}
    nodes = [_node(t) for t in graph.tables(2)]
    return RawGraph(nodes, raws, graph.texts(5), graph.texts(6), opsets), reading


def _values(tensor: Table) -> Array:
    kind, shape = tensor.integer(3), tuple(int(n) for n in tensor.array(2, "<i8"))
    if kind not in DTYPES:
        raise AnatomyError(f"wanted {tensor.text(0)} of a type in {sorted(DTYPES)}, got {kind}")
    raw = tensor.array(4, "|u1").tobytes()
    wanted = math.prod(shape) * np.dtype(DTYPES[kind]).itemsize
    if len(raw) != wanted:
        raise AnatomyError(f"wanted {wanted} bytes for {tensor.text(0)}, got {len(raw)}; it lies elsewhere")
    return np.frombuffer(raw, DTYPES[kind]).reshape(shape)


def _node(table: Table) -> RawNode:
    attributes = {a.text(0): _attribute(a) for a in table.tables(10)}
    domain = table.text(2)
    op = f"{domain}.{table.text(5)}" if domain not in ("", "ai.onnx") else table.text(5)
    return RawNode(op, tuple(table.texts(8)), tuple(table.texts(9)), attributes)


def _attribute(table: Table) -> Any:
    kind = table.integer(2)
    readers: dict[int, Callable[[], object]] = {
        FLOAT: lambda: float(np.float32(table.number(3, "f"))),
        INT: lambda: table.integer(4, "q"),
        TEXT: lambda: table.text(5),
        FLOATS: lambda: table.array(8, "<f4").tolist(),
        INTS: lambda: table.array(9, "<i8").tolist(),
        TEXTS: lambda: table.texts(10),
        TENSOR: lambda: _values(_present(table.table(6))),
    }
    if kind not in readers:
        raise AnatomyError(f"wanted an attribute of a kind in {sorted(readers)}, got {kind}")
    return readers[kind]()


def _present(table: Table | None) -> Table:
    if table is None:
        raise AnatomyError("wanted a tensor in an attribute, got none; the file is damaged")
    return table
