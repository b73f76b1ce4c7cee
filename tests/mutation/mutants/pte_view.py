"""One method of a `.pte` file that can be edited in place: its XNNPACK graphs and the data that they name."""

from __future__ import annotations

import math
import struct
from pathlib import Path

from mutants.fault import replace
from mutants.flat import Table
from mutants.ort_view import stored
from mutants.view import Const, Node, View

OPS = (
    "", "Add", "FullyConnected", "Softmax", "Sigmoid", "StaticTranspose", "Clamp", "Conv2d", "Div",
    "StaticResizeBilinear2D", "StaticConstantPad", "AvgPooling2d", "Minimum", "DepthwiseConv2d",
    "MaxPooling2d", "Multiply", "Subtract", "Floor", "Convert", "GlobalAvgPooling2d", "StaticReshape",
    "ArgMaxPooling2d", "SquareRoot", "Ceiling", "Hardswish", "LeakyReLU", "Maximum", "Negate", "Square",
    "ELU", "Abs", "PReLU", "Concatenate2", "Concatenate3", "Concatenate4", "StaticSlice",
    "ScaledDotProductAttention", "BatchMatrixMultiply", "Concatenate5", "ConvTranspose2d",
    "ReciprocalSquareRoot", "Log", "Gelu", "Tanh", "Exp", "Sin", "Copy", "Cos",
)  # fmt: skip
"""Kinds of nodes, by their numbers in XNNPACK's schema of ExecuTorch."""
BINARY = ("Add", "Div", "Minimum", "Multiply", "Subtract", "Maximum", "PReLU", "BatchMatrixMultiply")
CONV = ("Conv2d", "DepthwiseConv2d", "ConvTranspose2d")
FP32 = 1
TENSOR, DELEGATE_CALL, FLOAT = 5, 2, 6
"""Numbers in the program's schema: a value that is a tensor, an instruction that calls, a type."""
NOTHING = 2**32 - 1
"""Number of a bias that is not there."""
VECTORS = {"StaticTranspose": (1,), "StaticReshape": (1,), "StaticSlice": (1, 2), "StaticConstantPad": (0, 1)}
"""Fields that are lists."""
INLINE = 2**64 - 1
"""Offset of constant data that is named instead."""
INPUT, OUTPUT = 1, 2
"""Flags of a value."""


class PteFile:
    """The outer file: plans, and where the bytes of each segment are."""

    def __init__(self, data: bytearray) -> None:
        self.data = data
        magic, _, self.program_bytes, self.base = struct.unpack_from("<4sIQQ", data, 8)
        if data[4:8] != b"ET12" or magic != b"eh00":
            raise ValueError("wanted a .pte with an extended header")
        self.program = Table.root(data)
        self.segments = [(self.base + s.number(0, "Q"), s.number(1, "Q")) for s in self.program.tables(4)]
        self.named = {n.text(0): n for n in self.program.tables(7)}
        self.plans = {p.text(0): p for p in self.program.tables(1)}

    def where(self, key: str) -> tuple[int, int]:
        """Return start and length of named data."""
        return self.segments[self.named[key].number(1)]


class PteView(View):
    """The delegated graphs of one method."""

    def __init__(self, path: Path, method: str) -> None:
        super().__init__()
        self.path, self.data = path, bytearray(path.read_bytes())
        self.file, self.method = PteFile(self.data), method
        self.shapes: dict[str, object] = {}
        self.outputs: list[str] = []
        self.externals: list[object] = []
        plan = self.file.plans[method]
        delegates = [d for d in plan.tables(7) if d.text(0) == "XnnpackBackend"]
        given = {c.number(0): c.numbers(1) for c in _calls(plan)}
        for number, delegate in enumerate(delegates):
            reference = delegate.table(1)
            assert reference is not None
            self._graph(number, self.file.segments[reference.number(1)][0], plan, given[number])

    def _graph(self, number: int, start: int, plan: Table, given: list[int]) -> None:
        header = struct.unpack_from("<HIIIQ", self.data, start + 8)
        root = Table.root(self.data, start + header[1])
        constants, outer = root.tables(8), plan.tables(2)
        for value in root.tables(2):
            self._value(f"{number}.", value, constants, start + header[3])
        for name, place in zip(root.numbers(4), given, strict=False):
            self._outer(f"{number}.{name}", outer[place])
        self.outputs += [f"{number}.{i}" for i in root.numbers(5)]
        self.externals.append((root.numbers(4), root.numbers(5)))
        for node in root.tables(1):
            self._node(f"{number}.", node)

    def _value(self, prefix: str, value: Table, constants: list[Table], base: int) -> None:
        tensor = value.table(1)
        if tensor is not None and value.number(0, "B") == 2:
            tensor = tensor.table(0)  # the quantized kind wraps the plain one
        if tensor is None:
            return
        name = prefix + str(tensor.number(6))
        self.shapes[name] = (tensor.number(0, "h"), tensor.numbers(2), tensor.number(5))
        if tensor.number(5) & INPUT:
            self.inputs = (*self.inputs, name)
        index = tensor.number(3)
        if index and tensor.number(0, "h") == FP32:
            self._const(name, constants[index], base, tuple(tensor.numbers(2)))

    def _const(self, name: str, data: Table, base: int, shape: tuple[int, ...]) -> None:
        if data.number(0, "Q") == INLINE:
            start, count = self.file.where(data.text(2))
        else:
            start, count = base + data.number(0, "Q"), data.number(1, "Q")
        self.consts[name] = Const(name, stored(self.data, start, count, "<f4", shape), shape)

    def signature(self, index: int) -> object:
        """Return everything of a node but its wires, and the shape of what it makes."""
        node, found = self.nodes[index].ref
        op = self.nodes[index].op
        wires, output = _wires(op)
        vectors = VECTORS.get(op, ())
        plain = [f for f in range(20) if f not in (*wires, output, *vectors)]
        bounds = node.table(3)
        limits = [bounds.number(f, "f", 0.0) for f in (0, 1)] if bounds else []
        shape = self.shapes.get(self.nodes[index].outputs[0])
        return [[found.number(f) for f in plain], [found.numbers(f) for f in vectors], limits, shape]

    def _outer(self, name: str, value: Table) -> None:
        """Take in a constant that the program keeps outside of the delegate and hands to it as an input."""
        tensor, segment = value.table(1), self.file.program.table(5)
        index = 0 if tensor is None or value.number(0, "B") != TENSOR else tensor.number(5)
        if tensor is None or segment is None or not index or tensor.number(0, "b") != FLOAT:
            return
        start, _ = self.file.segments[segment.number(0)]
        shape = tuple(tensor.numbers(2, "i"))
        start, count = start + segment.numbers(1, "Q")[index], 4 * math.prod(shape)
        self.consts[name] = Const(name, stored(self.data, start, count, "<f4", shape), shape)
        self.inputs = tuple(i for i in self.inputs if i != name)

    def _node(self, prefix: str, node: Table) -> None:
        op, found = OPS[node.number(0, "B")], node.table(1)
        assert found is not None
        inputs, output = _wires(op)
        numbers = [found.number(i) for i in inputs]
        names = ["" if n == NOTHING else prefix + str(n) for n in numbers]
        self.nodes.append(Node(op, tuple(names), (prefix + str(found.number(output)),), (node, found)))

    def save(self) -> None:
        """Write the bytes."""
        replace(self.path, bytes(self.data))


def _calls(plan: Table) -> list[Table]:
    """Return the calls of delegates in a plan's only chain."""
    instructions = plan.tables(5)[0].tables(2)
    return [c for i in instructions if i.number(0, "B") == DELEGATE_CALL and (c := i.table(1)) is not None]


def _wires(op: str) -> tuple[tuple[int, ...], int]:
    """Return the fields of the inputs, weight and bias included, and of the output."""
    if op in BINARY:
        return (0, 1), 2
    if op in CONV:
        return (15, 16, 17), 18
    if op == "FullyConnected":
        return (0, 1, 2), 3
    if op.startswith("Concatenate"):
        return (1, 2, 3, 4)[: int(op[-1])], 5
    first = {"StaticTranspose": 2, "StaticReshape": 2, "StaticSlice": 3, "ELU": 1, "LeakyReLU": 1}
    first |= {"StaticResizeBilinear2D": 2, "StaticConstantPad": 3, "AvgPooling2d": 10, "MaxPooling2d": 10}
    at = first.get(op, 0)
    return (at,), at + 1
