"""Take an `.onnx` file apart."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from flashbulb.export.anatomy.decoding import RawGraph, RawNode, build
from flashbulb.export.anatomy.listing import AnatomyError, Array, Listing


def read_onnx(path: Path) -> Listing:
    """Read an `.onnx` file with its external data.

    Raises:
        AnatomyError: when it is damaged, or something else.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path))
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise AnatomyError(f"wanted an ONNX model in {path.name}, got: {error}") from error
    graph = model.graph
    opsets = {o.domain or "ai.onnx": o.version for o in model.opset_import}
    raws = {t.name: partial(_values, t) for t in graph.initializer}
    nodes = [_node(n) for n in graph.node]
    stored = set(raws)
    inputs = [i.name for i in graph.input if i.name not in stored]
    return build(RawGraph(nodes, raws, inputs, [o.name for o in graph.output], opsets))


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
