"""Take an `.onnx` file apart."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from flashbulb.export.anatomy.decoding import RawGraph, RawNode, build
from flashbulb.export.anatomy.flat import MOST_READS
from flashbulb.export.anatomy.listing import AnatomyError, Array, Listing
from flashbulb.export.anatomy.ort import DTYPES

EXTERNAL = 1
"""ONNX's number for data that lies outside of the file."""


def read_onnx(path: Path) -> Listing:
    """Read an `.onnx` file with its external data.

    Raises:
        AnatomyError: when it is damaged, or something else.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise AnatomyError(f"wanted an ONNX model in {path.name}, got: {error}") from error
    graph, outside = model.graph, External(path.parent)
    opsets = {o.domain or "ai.onnx": o.version for o in model.opset_import}
    raws = {t.name: partial(outside.values if _lies_outside(t) else _values, t) for t in graph.initializer}
    nodes = [_node(n) for n in graph.node]
    stored = set(raws)
    inputs = [i.name for i in graph.input if i.name not in stored]
    found = build(RawGraph(nodes, raws, inputs, [o.name for o in graph.output], opsets))
    outside.end()
    return found


def _lies_outside(tensor: Any) -> bool:
    return bool(tensor.data_location == EXTERNAL)


class External:
    """Constants in files beside a program, each file mapped once; many may not lie in one place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, Array] = {}
        self.left: dict[str, float] = {}

    def values(self, tensor: Any) -> Array:
        """Return the values of one constant.

        Raises:
            AnatomyError: when they are not in a plain file beside the program, or overlap too much.
        """
        told = {e.key: e.value for e in tensor.external_data}
        name, kind = told.get("location", ""), DTYPES.get(tensor.data_type)
        if kind is None:
            raise AnatomyError(f"wanted {tensor.name} of a type in {sorted(DTYPES)}, got {tensor.data_type}")
        data, start = self._file(name), int(told.get("offset", 0))
        size, shape = int(told.get("length", len(data) - start)), tuple(tensor.dims)
        wanted = math.prod(shape) * np.dtype(kind).itemsize
        if size != wanted or not 0 <= start <= len(data) - size:
            raise AnatomyError(
                f"wanted {wanted} bytes of {tensor.name} in {name[:80]!r}, "
                f"got {size} at {start} of {len(data)}; export it again"
            )
        self.left[name] -= size
        if self.left[name] < 0:
            raise AnatomyError(
                f"wanted constants of at most {MOST_READS} times the file {name[:80]!r}, got more; "
                "do not use it"
            )
        return np.frombuffer(data[start : start + size], kind).reshape(shape)

    def end(self) -> None:
        """Count no more: what is known by now may be read again and again."""
        self.left = dict.fromkeys(self.left, math.inf)

    def _file(self, name: str) -> Array:
        if name not in self.files:
            path = self.folder / name
            if PurePath(name).name != name or path.is_symlink() or not path.is_file():
                raise AnatomyError(f"wanted a file beside the program, got {name[:80]!r}; do not use it")
            size = path.stat().st_size
            self.files[name] = np.memmap(path, np.uint8, "r") if size else np.zeros(0, np.uint8)
            self.left[name] = MOST_READS * size
        return self.files[name]


def _values(tensor: Any) -> Array:
    from onnx import numpy_helper

    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise AnatomyError(f"wanted whole values of {tensor.name}, got: {error}") from error


def _node(node: Any) -> RawNode:
    import onnx

    attributes: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            raise AnatomyError(f"wanted no graph inside {node.op_type} {node.name}, got {attribute.name}")
        value = onnx.helper.get_attribute_value(attribute)
        attributes[attribute.name] = _values(value) if isinstance(value, onnx.TensorProto) else _plain(value)
    op = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
    return RawNode(op, tuple(node.input), tuple(node.output), attributes)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, float | int):
        return value
    return [_plain(v) for v in value]
