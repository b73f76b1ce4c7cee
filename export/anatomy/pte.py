"""Take a method of a `.pte` program apart: ExecuTorch's instructions, and XNNPACK's graphs inside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from flashbulb.export.anatomy.flat import Reading, Table
from flashbulb.export.anatomy.listing import AnatomyError, Array, Constant, Listing, Node, arrange, spell
from flashbulb.export.anatomy.xnnpack import Graph, read_graph

MARK, HEADER = b"ET12", b"eh00"
DTYPES = {
    0: "|u1", 1: "|i1", 2: "<i2", 3: "<i4", 4: "<i8", 5: "<f2", 6: "<f4", 7: "<f8", 11: "|b1", 27: "<u2",
    28: "<u4", 29: "<u8",
}  # fmt: skip
INT, BOOL, DOUBLE, TENSOR, TEXT, INTS = 2, 3, 4, 5, 6, 7
"""Numbers of `KernelTypes`."""
KERNEL, DELEGATE, MOVE, JUMP, FREE = 1, 2, 3, 4, 5
"""Numbers of `InstructionArguments`."""


class Program:
    """The tables of a `.pte` file, and the data behind them."""

    def __init__(self, path: Path) -> None:
        self.data = memoryview(path.read_bytes())
        if bytes(self.data[4:8]) != MARK:
            raise AnatomyError(f"wanted the mark {MARK!r} in {path.name}, got {bytes(self.data[4:8])!r}")
        extended = bytes(self.data[8:12]) == HEADER
        self.base = int.from_bytes(self.data[24:32], "little") if extended else 0
        self.reading = Reading(len(self.data))
        self.root = Table.root(self.data, reading=self.reading)
        self.segments = [(t.integer(0, "Q"), t.integer(1, "Q")) for t in self.root.tables(4)]
        self.named = {t.text(0): t.integer(1, "I") for t in self.root.tables(7)}
        self.inline = self.root.tables(2)
        found = self.root.table(5)
        self.constants = (found.integer(0, "I"), found.array(1, "<u8")) if found else (0, np.zeros(0, "<u8"))

    def method(self, name: str) -> Table:
        """Find the plan of a method."""
        plans = {t.text(0): t for t in self.root.tables(1)}
        if name not in plans:
            raise AnatomyError(f"wanted the method {name!r}, the program has {sorted(plans)}")
        return plans[name]

    def segment(self, index: int) -> memoryview:
        """Return the bytes of one segment."""
        if index >= len(self.segments):
            raise AnatomyError(f"wanted segment {index}, the program has {len(self.segments)}; it is damaged")
        start, size = self.base + self.segments[index][0], self.segments[index][1]
        if start + size > len(self.data):
            raise AnatomyError(f"wanted {size} bytes at {start}, the file has {len(self.data)}; it is cut")
        return self.data[start : start + size]

    def named_data(self, key: str) -> memoryview:
        """Return data that a delegate stores under a key."""
        if key not in self.named:
            raise AnatomyError(f"wanted the data {key[:16]!r}, the program has no such key; export it again")
        return self.segment(self.named[key])

    def constant(self, index: int, size: int) -> memoryview:
        """Return the bytes of a constant outside of all delegates."""
        if not len(self.constants[1]) and index < len(self.inline):
            return memoryview(self.inline[index].array(0, "|u1").data)[:size]
        if index >= len(self.constants[1]):
            raise AnatomyError(f"wanted constant {index}, the program has {len(self.constants[1])}")
        start = int(self.constants[1][index])
        data = self.segment(self.constants[0])[start : start + size]
        if len(data) != size:
            raise AnatomyError(f"wanted {size} bytes of constant {index}, got {len(data)}; the file is cut")
        self.reading.spend(size)
        return data

    def processed(self, delegate: Table) -> memoryview:
        """Return what a delegate was given."""
        reference = delegate.table(1)
        if reference is None:
            raise AnatomyError("wanted data of a delegate, got none; export it again")
        place, index = reference.integer(0, "b"), reference.integer(1, "I")
        if place == 1:
            return self.segment(index)
        inline = self.root.tables(3)
        if index >= len(inline):
            raise AnatomyError(f"wanted delegate data {index}, the program has {len(inline)}")
        return memoryview(inline[index].array(0, "|u1").data)


@dataclass(frozen=True, slots=True)
class Call:
    """One instruction: a kernel, or a graph that a delegate runs."""

    op: str
    args: list[str]
    graph: Graph | None = None


@dataclass(frozen=True, slots=True)
class Method:
    """One method, as an interpreter needs it."""

    listing: Listing
    calls: list[Call]
    inputs: list[str]
    outputs: list[str]


def read_pte(path: Path, method: str) -> Listing:
    """Read one method.

    Raises:
        AnatomyError: when the file is damaged, or uses what is not read here.
    """
    return read_method(path, method).listing


def read_method(path: Path, method: str) -> Method:
    """Read one method with its instructions.

    Raises:
        AnatomyError: when the file is damaged, or uses what is not read here.
    """
    reader = _Reader(Program(path), method)
    listing = reader.listing()
    inputs, outputs = ([f"v{i}" for i in reader.plan.array(n, "<i4")] for n in (3, 4))
    return Method(listing, reader.calls, inputs, outputs)


class _Reader:
    def __init__(self, program: Program, method: str) -> None:
        self.program, self.plan = program, program.method(method)
        self.values = self.plan.tables(2)
        self.nodes: list[Node] = []
        self.constants: dict[str, Constant] = {}
        self.lines: dict[str, str] = {}
        self.calls: list[Call] = []

    def listing(self) -> Listing:
        """Walk through the instructions of the only chain."""
        operators = [f"{t.text(0)}.{t.text(1)}".rstrip(".") for t in self.plan.tables(6)]
        delegates = self.plan.tables(7)
        for index in range(len(self.values)):
            self._value(index)
        for place, (kind, table) in enumerate(self._instructions()):
            args = [f"v{i}" for i in table.array(1, "<i4")] if kind in (KERNEL, DELEGATE) else []
            if kind == KERNEL:
                self._kernel(place, operators[table.integer(0)], args)
            elif kind == DELEGATE:
                self._delegate(place, delegates[table.integer(0)], args)
            else:
                self.lines[f"instruction {place}"] = f"{kind} {table.integer(0)} {table.integer(1)}"
        ends = (f"{self.plan.array(3, '<i4').tolist()}", f"{self.plan.array(4, '<i4').tolist()}")
        self.lines["(inputs)"], self.lines["(outputs)"] = ends
        self.lines["(memory)"] = f"{self.plan.array(8, '<i8').tolist()}"
        used = {i for n in self.nodes for i in n.inputs}
        constants = {n: c for n, c in self.constants.items() if n in used}
        self.program.reading.end()
        return Listing(nodes=arrange(self.nodes), constants=constants, lines=self.lines)

    def _instructions(self) -> Iterator[tuple[int, Table]]:
        for chain in self.plan.tables(5):
            for item in chain.tables(2):
                table = item.table(1)
                if table is None:
                    raise AnatomyError("wanted an instruction with arguments, got none; the file is damaged")
                yield item.integer(0, "B"), table

    def _value(self, index: int) -> None:
        kind, table = self.values[index].integer(0, "B"), self.values[index].table(1)
        name = f"v{index}"
        if kind != TENSOR or table is None:
            self.lines[name] = _scalar(kind, table)
            return
        dtype, shape = table.integer(0, "b"), tuple(int(n) for n in table.array(2, "<i4"))
        order, buffer = table.array(3, "|u1").tolist(), table.integer(5, "I")
        if dtype not in DTYPES:
            raise AnatomyError(f"wanted {name} of a type in {sorted(DTYPES)}, got {dtype}")
        place = table.table(6)
        planned = [place.integer(n, "I") for n in range(3)] if place else []
        self.lines[name] = f"tensor {DTYPES[dtype]}{list(shape)} order {order} memory {planned}"
        if buffer:
            load = partial(self._constant, buffer, DTYPES[dtype], shape)
            self.constants[name] = Constant(load)
            self.lines[name] += f" constant {spell(load())}"

    def _constant(self, buffer: int, dtype: str, shape: tuple[int, ...]) -> Array:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        return np.frombuffer(self.program.constant(buffer, size), dtype).reshape(shape)

    def _kernel(self, place: int, op: str, args: list[str]) -> None:
        """A kernel writes into its last arguments, which are there twice."""
        outputs = tuple(dict.fromkeys(a for a in args[-1:]))
        line = f"{op}({', '.join(args)})"
        self.calls.append(Call(op, args))
        self.lines[f"instruction {place}"] = line
        self.nodes.append(Node(op, tuple(a for a in args if a not in outputs), outputs, line))

    def _delegate(self, place: int, delegate: Table, args: list[str]) -> None:
        name = delegate.text(0)
        if name != "XnnpackBackend":
            raise AnatomyError(f"wanted the delegate XnnpackBackend, got {name!r}; it is not read here")
        program = self.program
        graph = read_graph(program.processed(delegate), program.named_data, f"d{place}.", program.reading)
        self.lines[f"instruction {place}"] = f"delegate {name}({', '.join(args)})"
        self.calls.append(Call(name, args, graph))
        self.lines |= graph.lines
        self.constants |= graph.constants
        self.nodes += [*_bound(graph, args)]


def _bound(graph: Graph, args: list[str]) -> Iterator[Node]:
    """Give the values at a graph's border the names that the program has for them."""
    border = [*graph.inputs, *graph.outputs]
    if len(border) != len(args):
        raise AnatomyError(f"wanted {len(border)} arguments of a delegate, got {len(args)}; export it again")
    names = dict(zip(border, args, strict=True))
    for node in graph.nodes:
        inputs = tuple(names.get(i, i) for i in node.inputs)
        yield Node(node.op, inputs, tuple(names.get(o, o) for o in node.outputs), node.line)


def _scalar(kind: int, table: Table | None) -> str:
    if table is None:
        return "null"
    readers: dict[int, Callable[[], object]] = {
        INT: lambda: table.integer(0, "q"),
        BOOL: lambda: bool(table.integer(0, "b")),
        DOUBLE: lambda: table.number(0, "d"),
        TEXT: lambda: table.text(0),
        INTS: lambda: table.array(0, "<i8").tolist(),
    }
    return f"{kind} {readers[kind]() if kind in readers else table.array(0, '<i4').tolist()}"
