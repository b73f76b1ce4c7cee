"""Store the weights of an ONNX model as codes: what stays exact is the decoded value."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from flashbulb.export.encodings import NotExpressible

if TYPE_CHECKING:
    from flashbulb.compress.encoding import EncodedTensor
    from flashbulb.export.graph import Graph

SMALL = 1024
"""Weights under this many elements are left alone."""


def _key(values: Any) -> tuple[tuple[int, ...], str]:
    array = np.ascontiguousarray(values, dtype=np.float32)
    return array.shape, hashlib.sha256(array.tobytes()).hexdigest()


def apply_encodings(model: Any, graph: Graph, used: dict[str, EncodedTensor]) -> None:
    """Replace weights by their codes and the nodes that decode them.

    The exporter renames and transposes weights, so each is found by its values.

    Raises:
        NotExpressible: if an encoded weight is in the graph in no recognisable form.
    """
    from onnx import numpy_helper

    coded = {n: e for n, e in used.items() if e.encoding.coded}
    if not coded:
        return
    places: dict[Any, list[Any]] = {}
    for tensor in model.graph.initializer:
        if tensor.data_type == 1 and len(tensor.dims) >= 2:
            places.setdefault(_key(numpy_helper.to_array(tensor)), []).append(tensor)
    for name, encoded in coded.items():
        _encode(model, places, name, encoded)


def _encode(model: Any, places: dict[Any, list[Any]], name: str, encoded: EncodedTensor) -> None:
    values = encoded.decode()
    orders = [tuple(range(values.ndim))] + ([(1, 0)] if values.ndim == 2 else [])
    # A 1x1 convolution over one position may come out as a matrix; only plain and transposed are known here.
    for order in orders:
        for tensor in places.pop(_key(values.transpose(order)), []):
            _decode(model, tensor, encoded, order)
            return
    raise NotExpressible(
        f"wanted the encoded weight {name} in the ONNX graph, found it in no known form; "
        "leave it out of the compression plan for this backend"
    )


def _decode(model: Any, tensor: Any, encoded: EncodedTensor, order: tuple[int, ...]) -> None:
    """Put a decoding node in front of the uses of one initializer."""
    from onnx import helper, numpy_helper

    name = tensor.name
    codes = np.ascontiguousarray(encoded.codes.transpose(order))
    model.graph.initializer.remove(tensor)
    if encoded.scale is not None:
        along = [-1 if axis == 0 else 1 for axis in order]
        stored = {"codes": codes.astype(np.int8), "scale": encoded.scale.reshape(along).astype(np.float32)}
        # Not DequantizeLinear: the runtime turns one in front of a product into a kernel that also rounds the
        # activations to 8 bits (43 dB), and it never folds it; a cast and a product are exact and folded.
        steps = [("Cast", ("codes",), "wide", {"to": 1}), ("Mul", ("wide", "scale"), "", {})]
    else:
        lut = np.asarray(encoded.lut, dtype=np.float32)
        stored = {"codes": codes.astype(np.uint8), "lut": lut}
        # Gather wants 32-bit indices; the runtime folds both nodes while it loads.
        steps = [("Cast", ("codes",), "index", {"to": 6}), ("Gather", ("lut", "index"), "", {"axis": 0})]
    added = [numpy_helper.from_array(array, f"{name}.{part}") for part, array in stored.items()]
    nodes = [
        helper.make_node(kind, [f"{name}.{i}" for i in inputs], [f"{name}.{out}" if out else name], **options)
        for kind, inputs, out, options in steps
    ]
    for node in nodes:
        node.name = f"{name}.{node.op_type}"
    model.graph.initializer.extend(added)
    for node in reversed(nodes):
        model.graph.node.insert(0, node)


def halve(model: Any) -> int:
    """Store each weight whose values are all exact in fp16 as fp16, with a cast in front; return how many."""
    from onnx import helper, numpy_helper

    changed = 0
    for tensor in list(model.graph.initializer):
        if tensor.data_type != 1 or int(np.prod(tensor.dims)) < SMALL or tensor.name.endswith(".lut"):
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue
        name = tensor.name
        model.graph.initializer.remove(tensor)
        model.graph.initializer.append(numpy_helper.from_array(half, f"{name}.half"))
        model.graph.node.insert(
            0, helper.make_node("Cast", [f"{name}.half"], [name], name=f"{name}.single", to=1)
        )
        changed += 1
    return changed
