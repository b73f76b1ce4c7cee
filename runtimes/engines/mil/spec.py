"""The parts of Core ML's model file that describe an ML program, read from protobuf without its schema."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flashbulb.runtimes.engines.mil.dtypes import DType, dtype_numbered
from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.engines.mil.wire import MAX_DEPTH, Field, Message, Reader, first, signed, text, whole

MAX_RANK = 32


@dataclass(frozen=True, slots=True)
class Type:
    """Type of a value: a tensor, or a list, a state or a dictionary of something."""

    kind: str
    """`tensor`, `list`, `state`, `dictionary` or `tuple`."""
    dtype: DType | None = None
    """Element type of a tensor, of a list's elements or of a state's content."""
    shape: tuple[int | None, ...] | None = None
    """Sizes of a tensor; None for one that is free, and for the whole when even the rank is."""


@dataclass(frozen=True, slots=True)
class Value:
    """A constant as the file stores it; `constants.decode` gives the array."""

    type: Type
    tensor: Field | None = None
    """Bytes of a `TensorValue`."""
    items: tuple[Value, ...] | None = None
    """Elements of a list."""
    blob: tuple[str, int] | None = None
    """File and offset of one that lies in a weight file."""
    array: Any = None
    """The values themselves, of one that was put in the place of another."""


@dataclass(frozen=True, slots=True)
class Named:
    """A name with its type."""

    name: str
    type: Type


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: its inputs are names, or constants given in place."""

    op: str
    inputs: dict[str, tuple[str | Value, ...]]
    outputs: tuple[Named, ...]
    blocks: tuple[Block, ...]
    attributes: dict[str, Value]


@dataclass(frozen=True, slots=True)
class Block:
    """Operations in order, with what comes in and what goes out."""

    inputs: tuple[Named, ...]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]


@dataclass(frozen=True, slots=True)
class Function:
    """One function of a program, in the one opset that it names."""

    inputs: tuple[Named, ...]
    opset: str
    block: Block


@dataclass
class SpecReader:
    """Reads messages of MIL's schema."""

    reader: Reader = field(default_factory=Reader)

    def functions(self, program: Field) -> dict[str, Function]:
        """Read every function of a `Program`."""
        found = self.reader.message(program)
        if whole(found, 1) != 1:
            raise ProgramError(f"wanted an ML program of version 1, got {whole(found, 1)}")
        return {n: self.function(v) for n, v in self._entries(found, 2)}

    def function(self, data: Field) -> Function:
        """Read one function and the block of its opset."""
        found = self.reader.message(data)
        opset, blocks = text(first(found, 2)), dict(self._entries(found, 3))
        if opset not in blocks:
            raise ProgramError(f"wanted a block for the opset {opset!r}, the function has {sorted(blocks)}")
        return Function(self._named(found, 1), opset, self.block(blocks[opset]))

    def block(self, data: Field, depth: int = 0) -> Block:
        """Read a block and, inside its operations, further ones."""
        _check_depth(depth)
        found = self.reader.message(data)
        operations = tuple(self.operation(o, depth) for o in found.get(3, []))
        return Block(self._named(found, 1), tuple(text(o) for o in found.get(2, [])), operations)

    def operation(self, data: Field, depth: int) -> Operation:
        """Read one operation."""
        found = self.reader.message(data)
        return Operation(
            op=text(first(found, 1)),
            inputs={name: self._argument(a) for name, a in self._entries(found, 2)},
            outputs=self._named(found, 3),
            blocks=tuple(self.block(b, depth + 1) for b in found.get(4, [])),
            attributes={name: self.value(v) for name, v in self._entries(found, 5)},
        )

    def value(self, data: Field, depth: int = 0) -> Value:
        """Read a constant's type and where its content is."""
        _check_depth(depth)
        found = self.reader.message(data)
        kind = self.type(first(found, 2, memoryview(b"")))
        if 5 in found:
            blob = self.reader.message(found[5][-1])
            return Value(kind, blob=(text(first(blob, 1)), whole(blob, 2)))
        immediate = self.reader.message(first(found, 3, memoryview(b"")))
        if 3 in immediate:
            items = self.reader.message(immediate[3][-1]).get(1, [])
            return Value(kind, items=tuple(self.value(v, depth + 1) for v in items))
        if 1 not in immediate:
            raise ProgramError(
                f"wanted a tensor, a list or a file as a constant, got fields {sorted(immediate)}"
            )
        return Value(kind, tensor=immediate[1][-1])

    def type(self, data: Field, depth: int = 0) -> Type:
        """Read a type."""
        _check_depth(depth)
        found = self.reader.message(data)
        if 1 in found:
            return self._tensor_type(self.reader.message(found[1][-1]))
        if 2 in found or 5 in found:
            kind, number = ("list", 2) if 2 in found else ("state", 5)
            inner = self.type(first(self.reader.message(found[number][-1]), 1, memoryview(b"")), depth + 1)
            return Type(kind, inner.dtype, inner.shape)
        return Type("dictionary" if 4 in found else "tuple")

    def _tensor_type(self, found: Message) -> Type:
        dimensions = [self._size(d) for d in found.get(3, [])]
        dtype, rank = dtype_numbered(whole(found, 1)), signed(whole(found, 2))
        if -1 in dimensions or rank < 0:
            return Type("tensor", dtype, None)
        if rank != len(dimensions) or rank > MAX_RANK:
            raise ProgramError(f"wanted a tensor type of rank {rank}, it lists {len(dimensions)} sizes")
        return Type("tensor", dtype, tuple(dimensions))

    def _size(self, data: Field) -> int | None:
        """Read one size: a number, None when it is free, -1 when it stands for any number of sizes."""
        found = self.reader.message(data)
        if 1 in found:
            return whole(self.reader.message(found[1][-1]), 1)
        unknown = self.reader.message(first(found, 2, memoryview(b"")))
        return -1 if whole(unknown, 1) else None

    def _argument(self, data: Field) -> tuple[str | Value, ...]:
        bindings = [self.reader.message(b) for b in self.reader.message(data).get(1, [])]
        return tuple(self.value(b[2][-1]) if 2 in b else text(first(b, 1)) for b in bindings)

    def _named(self, message: Message, number: int) -> tuple[Named, ...]:
        found = [self.reader.message(data) for data in message.get(number, [])]
        return tuple(Named(text(first(f, 1)), self.type(first(f, 2, memoryview(b"")))) for f in found)

    def _entries(self, message: Message, number: int) -> list[tuple[str, Field]]:
        """Read a map of strings to messages."""
        found = [self.reader.message(data) for data in message.get(number, [])]
        return [(text(first(f, 1)), first(f, 2, memoryview(b""))) for f in found]


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ProgramError(f"wanted blocks and values nested at most {MAX_DEPTH} deep; do not use this file")
