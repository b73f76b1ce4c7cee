"""Tell a mutant that computes the same from a fault, by argument and not by hand.

A mutant is equivalent when two things hold.  First, its program is the same program: both have one canonical
form, from which everything is dropped that no runtime may read.  The rules, each an argument:

- *names*: a value is known by what computes it, not by what it is called; so is an operation;
- *dead parts*: what no output depends on, and bytes outside of every record, segment and table, are not run;
- *storage*: a constant is the values that it decodes to, whichever codes, tables and places hold them;
- *order*: stored constants have none; addition, multiplication, minimum and maximum of two values commute
  exactly in IEEE arithmetic;
- *unread attributes*: `allowzero` matters only to a shape with a zero in it; coefficients of cubic
  interpolation only to cubic interpolation; and two ways to round are one where they pick the same elements.

Second, every output that the gates saw is the clean bundle's, bit for bit.  The second alone proves nothing:
a fault may hide from a few prompts.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from mutants.mlpackage_view import MlpackageView
from mutants.onnx_view import OnnxView
from mutants.ort_view import OrtView
from mutants.pte_view import PteFile, PteView
from mutants.view import Const, View

COMMUTE = (
    "Add",
    "Mul",
    "Multiply",
    "Maximum",
    "Minimum",
    "Max",
    "Min",
    "Sum",
    "add",
    "mul",
    "maximum",
    "minimum",
)
UNREAD = {"Resize": ("antialias", "exclude_outside", "extrapolation_value", "keep_aspect_ratio_policy")}
"""Attributes without a meaning to nearest neighbours at whole factors."""


def canonical(path: Path, fmt: str) -> str | None:
    """Return the digest of a file's meaning; None for what cannot be read."""
    reader = READERS.get(fmt)
    try:
        return reader(path) if reader else None
    except Exception:  # whatever a damaged file raises: it is not the clean program
        return None


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def _array(array: Any) -> str:
    return hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()


def decoded(const: Const) -> str:
    """Return the digest of a constant's values."""
    values = const.values.read()
    if "lut" in const.parts:
        values = const.parts["lut"].read().reshape(-1)[values]
    elif "scale" in const.parts:
        return _digest(_array(values), *(_array(p.read()) for p in const.parts.values()))
    return _array(np.ascontiguousarray(values))


def graph(view: View, outputs: list[str], sign: Callable[[int], object], other: dict[str, str]) -> str:
    """Return the digest of what computes each output, from the leaves up."""
    known = {name: f"input {i}" for i, name in enumerate(view.inputs)} | other
    known |= {name: decoded(c) for name, c in view.consts.items()}
    makers = {name: i for i, node in enumerate(view.nodes) for name in node.outputs}
    stack = [name for name in outputs if name not in known]
    while stack:
        name = stack[-1]
        node = view.nodes[makers[name]]
        waiting = [n for n in node.inputs if n and n not in known]
        if waiting:
            stack += waiting
            continue
        stack.pop()
        inputs = [known.get(n, "") for n in node.inputs]
        if node.op in COMMUTE:
            inputs.sort()
        for place, output in enumerate(node.outputs):
            known[output] = _digest(node.op, sign(makers[name]), inputs, place)
    return _digest([known[name] for name in outputs])


def _onnx(path: Path) -> str:
    view = OnnxView(path)
    contract = [v.SerializeToString() for v in (*view.model.graph.input, *view.model.graph.output)]
    outputs = [o.name for o in view.model.graph.output]
    opsets = [o.SerializeToString() for o in view.model.opset_import]
    ways = sorted((n.op, [a.SerializeToString() for a in n.ref.attribute]) for n in view.decoders)
    return _digest(contract, opsets, ways, graph(view, outputs, lambda i: _attributes(view, i), {}))


def _ort(path: Path) -> str:
    view = OrtView(path)
    from mutants.flat import Table

    model = Table.root(view.data).table(1)
    body = model.table(7) if model else None
    assert body is not None
    outputs = body.texts(6)
    ways = sorted((n.op, [(a.text(0), a.number(4, "q")) for a in n.ref.tables(10)]) for n in view.decoders)
    return _digest(view.inputs, outputs, ways, graph(view, outputs, lambda i: _attributes(view, i), {}))


def _attributes(view: Any, index: int) -> object:
    node, found = view.nodes[index], view.attributes(index)
    if node.op == "Reshape":
        shape = view.consts.get(node.inputs[1])
        if shape is not None and (shape.values.read() != 0).all():
            found.pop("allowzero", None)
    if node.op == "Resize" and found.get("mode") == b"nearest":
        found = {k: v for k, v in found.items() if k not in UNREAD["Resize"] and k != "cubic_coeff_a"}
        scales = view.consts.get(node.inputs[2]) if len(node.inputs) > 2 else None
        how = found.pop("nearest_mode", b""), found.pop("coordinate_transformation_mode", b"")
        found["picks"] = how if scales is None else [_picks(float(s), *how) for s in scales.values.read()]
    return sorted((k, str(v)) for k, v in found.items())


def _picks(scale: float, mode: bytes, coordinates: bytes) -> object:
    """Return which elements are nearest to the first outputs; a whole factor repeats from there."""
    if scale != int(scale) or coordinates not in (b"asymmetric", b"half_pixel"):
        return (scale, mode, coordinates)
    half = 0.5 if coordinates == b"half_pixel" else 0.0
    places = [(i + half) / scale - half for i in range(16 * int(scale))]
    rounding: dict[bytes, Callable[[float], int]] = {
        b"floor": math.floor,
        b"ceil": math.ceil,
        b"round_prefer_floor": lambda x: math.ceil(x - 0.5),
        b"round_prefer_ceil": lambda x: math.floor(x + 0.5),
    }
    return [max(0, rounding[mode](x)) for x in places]


def _package(path: Path) -> str:
    view = MlpackageView(path)
    others = {n: _digest(v.SerializeToString(deterministic=True)) for n, v in view.immediates.items()}
    others = {n: d for n, d in others.items() if n not in view.consts}

    def sign(index: int) -> object:
        node = view.nodes[index]
        names = {
            key: [others.get(a.name, "") for a in value.arguments] for key, value in node.ref.inputs.items()
        }
        if node.op in COMMUTE:
            return [o.type.SerializeToString(deterministic=True) for o in node.ref.outputs]
        order = [(k, [a.name in view.consts for a in node.ref.inputs[k].arguments]) for k in sorted(names)]
        kinds = [o.type.SerializeToString(deterministic=True) for o in node.ref.outputs]
        return [sorted(names.items()), order, kinds]

    contract = view.model.description.SerializeToString(deterministic=True)
    head = (view.model.specificationVersion, view.model.mlProgram.functions["main"].opset)
    return _digest(
        contract, head, view.inputs, graph(view, list(view.block.outputs), sign, others), _manifest(path)
    )


def _manifest(path: Path) -> object:
    return json.loads((path / "Manifest.json").read_text())


def blob_spans(view: MlpackageView) -> set[tuple[int, int]]:
    """Return the stretches of a weight file that a program reads: records and their data."""
    found = {(0, 64)}
    for op in view.block.operations:
        for value in op.attributes.values():
            if value.WhichOneof("value") == "blobFileValue":
                offset = value.blobFileValue.offset
                _, _, count, start = struct.unpack_from("<IIQQ", view.data, offset)
                found |= {(offset, offset + 64), (start, start + count)}
    return found


def _pte(path: Path) -> str:
    data = path.read_bytes()
    file = PteFile(bytearray(data))
    graphs, delegates = [], set()
    for name in sorted(file.plans):
        view = PteView(path, name)
        delegates |= {d.table(1).number(1) for d in file.plans[name].tables(7)}  # type: ignore[union-attr]
        graphs.append([view.externals, graph(view, view.outputs, lambda i, v=view: v.signature(i), {})])
    segments = {i: hashlib.sha256(data[s : s + n]).hexdigest() for i, (s, n) in enumerate(file.segments)}
    kept = [
        segments[i]
        for i in sorted(segments)
        if i not in delegates | {n.number(1) for n in file.named.values()}
    ]
    outer = hashlib.sha256(data[: file.program_bytes]).hexdigest()
    return _digest(outer, graphs, kept)


def _json(path: Path) -> str:
    return _digest(msgspec.json.decode(path.read_bytes()))


READERS: dict[str, Callable[[Path], str]] = {
    "onnx": _onnx,
    "ort": _ort,
    "mlpackage": _package,
    "pte": _pte,
    "json": _json,
}
