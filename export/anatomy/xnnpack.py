"""Read what ExecuTorch hands to XNNPACK: a header, a flatbuffer with the graph (`schema.fbs`), constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from flashbulb.export.anatomy.flat import Reading, Table
from flashbulb.export.anatomy.listing import AnatomyError, Array, Constant, Node, spell

HEADER = b"XH00"
NOTHING = 2**32 - 1
"""The id that stands for an absent value, such as no bias."""
NO_OFFSET = 2**64 - 1
DTYPES = {1: "<f4", 2: "<f2", 12: "<i4"}
PAIR = "input1_id input2_id output_id flags"
ONE = "input_id output_id flags"
CONVOLUTION = (
    "padding_top padding_right padding_bottom padding_left kernel_height kernel_width subsampling_height "
    "subsampling_width dilation_height dilation_width group_input_channels group_output_channels groups "
    "adjustment_height adjustment_width input1_id filter_id bias_id output_id flags"
)
JOIN = "axis input1_id input2_id input3_id input4_id output_id flags input5_id"
KINDS: tuple[tuple[str, str], ...] = (
    ("Add", PAIR), ("FullyConnected", "input1_id filter_id bias_id output_id flags"), ("Softmax", ONE),
    ("Sigmoid", ONE), ("StaticTranspose", "num_dims perm* input_id output_id flags"), ("Clamp", ONE),
    ("Conv2d", CONVOLUTION), ("Div", PAIR),
    ("StaticResizeBilinear2D", "new_height new_width input_id output_id flags"),
    ("StaticConstantPad", "pre_paddings* post_paddings* padding_value. input_id output_id flags"),
    ("AvgPooling2d", ""), ("Minimum", PAIR), ("DepthwiseConv2d", CONVOLUTION), ("MaxPooling2d", ""),
    ("Multiply", PAIR), ("Subtract", PAIR), ("Floor", ONE), ("Convert", ONE), ("GlobalAvgPooling2d", ONE),
    ("StaticReshape", "num_dims new_shape* input_id output_id flags"), ("ArgMaxPooling2d", ""),
    ("SquareRoot", ONE), ("Ceiling", ONE), ("Hardswish", ONE),
    ("LeakyReLU", "negative_slope. input_id output_id flags"), ("Maximum", PAIR), ("Negate", ONE),
    ("Square", ONE), ("ELU", "alpha. input_id output_id flags"), ("Abs", ONE), ("PReLU", PAIR),
    ("Concatenate2", JOIN), ("Concatenate3", JOIN), ("Concatenate4", JOIN),
    ("StaticSlice", "num_dims offsets* sizes* input_id output_id flags"),
    ("ScaledDotProductAttention", ""), ("BatchMatrixMultiply", PAIR), ("Concatenate5", JOIN),
    ("ConvTranspose2d", CONVOLUTION), ("ReciprocalSquareRoot", ONE), ("Log", ONE), ("Gelu", ONE),
    ("Tanh", ONE), ("Exp", ONE), ("Sin", ONE), ("Copy", ONE), ("Cos", ONE),
)  # fmt: skip
"""Nodes in the order of the schema's union, with their fields; `*` marks a list, `.` a float."""


@dataclass(frozen=True, slots=True)
class Step:
    """One node with its numbers, as an interpreter needs it."""

    op: str
    fields: dict[str, float | int | list[int]]
    bounds: tuple[float, float] | None
    """Least and largest value of what comes out."""


@dataclass(slots=True)
class Graph:
    """One XNNPACK graph; values are named by a prefix and their id."""

    prefix: str
    nodes: list[Node] = field(default_factory=list)
    steps: dict[str, Step] = field(default_factory=dict)
    """What makes each output."""
    externs: dict[str, int] = field(default_factory=dict)
    """Value -> its place among all that is given from outside and back."""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    constants: dict[str, Constant] = field(default_factory=dict)
    lines: dict[str, str] = field(default_factory=dict)


def read_graph(
    data: memoryview, named: Callable[[str], memoryview], prefix: str, reading: Reading | None = None
) -> Graph:
    """Read one graph.

    Args:
        data: header, flatbuffer and constants.
        named: gives constants that are stored elsewhere in the program, by their key.
        prefix: what the names of its values begin with.
        reading: what may still be read of the whole program.

    Raises:
        AnatomyError: when it is damaged, or uses what is not read here.
    """
    if len(data) < 30 or bytes(data[4:8]) != HEADER:
        raise AnatomyError(f"wanted the mark {HEADER!r} of an XNNPACK graph, got {bytes(data[4:8])!r}")
    start, size = (int.from_bytes(data[o : o + 4], "little") for o in (10, 14))
    base = int.from_bytes(data[18:22], "little")
    root, graph = Table.root(data[start : start + size], reading=reading), Graph(prefix)
    places = [(t.integer(0, "Q"), t.integer(1, "Q"), t.text(2)) for t in root.tables(8)]

    def stored(index: int) -> memoryview:
        if index >= len(places):
            raise AnatomyError(f"wanted XNNPACK's constant {index}, there are {len(places)}; it is damaged")
        offset, count, key = places[index]
        root.reading.spend(min(count, len(data)))
        return named(key)[:count] if offset == NO_OFFSET else data[base + offset : base + offset + count]

    for item in root.tables(2):
        _value(graph, item, stored)
    for item in root.tables(1):
        _node(graph, item)
    graph.inputs = _externs(graph, root, 4)
    graph.outputs = _externs(graph, root, 5)
    return graph


def _externs(graph: Graph, root: Table, number: int) -> list[str]:
    """Return the names at a border in the order of a call's arguments, which is not that of the list."""
    names = [f"{graph.prefix}{i}" for i in root.array(number, "<u4")]
    graph.lines[f"{graph.prefix}({'inputs' if number == 4 else 'outputs'})"] = ", ".join(names)
    return sorted(names, key=lambda name: graph.externs.get(name, NOTHING))


def _value(graph: Graph, item: Table, stored: Callable[[int], memoryview]) -> None:
    table = item.table(1)
    if item.integer(0, "B") != 1 or table is None:
        raise AnatomyError("wanted plain values of XNNPACK, got quantised ones; they are not read here")
    kind, shape = table.integer(0, "h"), tuple(int(n) for n in table.array(2, "<u4"))
    name, buffer = f"{graph.prefix}{table.integer(6, 'I')}", table.integer(3, "I")
    if kind not in DTYPES:
        raise AnatomyError(f"wanted {name} of a type in {sorted(DTYPES)}, got {kind}; it is not read here")
    graph.shapes[name], graph.externs[name] = shape, table.integer(4, "I")
    graph.lines[name] = f"value {DTYPES[kind]}{list(shape)} flags {table.integer(5, 'I')}"
    if buffer:
        load = partial(_constant, name, partial(stored, buffer), DTYPES[kind], shape)
        graph.constants[name] = Constant(load)
        graph.lines[name] += f" constant {spell(load())}"


def _constant(name: str, raw: Callable[[], memoryview], dtype: str, shape: tuple[int, ...]) -> Array:
    data, wanted = raw(), math.prod(shape) * np.dtype(dtype).itemsize
    if len(data) < wanted:
        raise AnatomyError(f"wanted {wanted} bytes of {name}, got {len(data)}; the file is cut")
    return np.frombuffer(data[:wanted], dtype).reshape(shape)


def _node(graph: Graph, item: Table) -> None:
    number, table = item.integer(0, "B"), item.table(1)
    if not 1 <= number <= len(KINDS) or table is None or not KINDS[number - 1][1]:
        raise AnatomyError(f"wanted a node of XNNPACK that is read here, got number {number}")
    op, words = KINDS[number - 1]
    fields = dict(_fields(table, words.split()))
    limits = item.table(3)
    bounds = (float(limits.number(0, "f")), float(limits.number(1, "f"))) if limits else None
    count = int(op[-1]) if op.startswith("Concatenate") else 5
    ids = {k: v for k, v in fields.items() if k.endswith("_id") and v != NOTHING and not _extra(k, count)}
    output = f"{graph.prefix}{ids.pop('output_id')}"
    inputs = tuple(f"{graph.prefix}{v}" for v in ids.values())
    rest = {k: v for k, v in fields.items() if not k.endswith("_id")}
    line = f"{op}({', '.join(inputs)}) -> {output} {rest}" + (f" within {bounds}" if bounds else "")
    graph.lines[f"-> {output}"] = line
    graph.nodes.append(Node(op, inputs, (output,), line))
    graph.steps[output] = Step(op, fields, bounds)


def _extra(field_name: str, count: int) -> bool:
    """Tell the inputs of a concatenation beyond those that it has."""
    return field_name.startswith("input") and field_name[5:6].isdigit() and int(field_name[5]) > count


def _fields(table: Table, words: list[str]) -> Iterator[tuple[str, float | int | list[int]]]:
    for number, word in enumerate(words):
        if word.endswith("*"):
            yield word[:-1], [int(n) for n in table.array(number, "<u4")]
        elif word.endswith("."):
            yield word[:-1], float(table.number(number, "f"))
        else:
            yield word, table.integer(number, "I")
