"""Take a Core ML program apart with the interpreter's reader: operations, wiring, constants, and its text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from flashbulb.compress.encoding import pack
from flashbulb.export.anatomy.coreml import (
    ARRAYS,
    FEATURES,
    STRING,
    feature_line,
    immediate,
    operation_line,
    type_word,
)
from flashbulb.export.anatomy.listing import AnatomyError, Array, Constant, Listing, Node, digest
from flashbulb.runtimes.engines.mil.blob import read_raw
from flashbulb.runtimes.engines.mil.constants import Weights, decode
from flashbulb.runtimes.engines.mil.description import Description
from flashbulb.runtimes.engines.mil.dtypes import DTYPES, DType
from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.engines.mil.package import read_package
from flashbulb.runtimes.engines.mil.spec import Block, Named, Operation, Type, Value

T = TypeVar("T")
FAULTS = (RuntimeError, ValueError, LookupError, TypeError, ArithmeticError, MemoryError, StopIteration)
"""What decoding raises on a damaged package; a constant that is made of itself ends in a RecursionError."""
MOST_READS = 8
"""How often over the weight files may be read: functions share their constants."""
OPSETS = {f"CoreML{n}": n + 10 for n in range(5, 9)}
DECODERS = {"constexpr_lut_to_dense": "lut", "constexpr_affine_dequantize": "scale"}
"""Operations that decode one weight, with the name of their table or of their steps."""


def read_package_listing(path: Path) -> Listing:
    """Read the `main` function, or the one that the package names.

    Raises:
        ProgramError: when the package is damaged; a constant raises it when it is loaded.
    """
    return _told(path.name, lambda: _listing(path))


def _told(what: str, call: Callable[[], T]) -> T:
    """Call, and turn what numbers and names that point nowhere raise into a sentence."""
    try:
        return call()
    except (ProgramError, AnatomyError):
        raise
    except FAULTS as error:
        reason = f"{type(error).__name__} {error}".rstrip()
        raise ProgramError(f"wanted a sound program in {what}, got: {reason}; export it again") from error


def _listing(path: Path) -> Listing:
    package = read_package(path)
    lines = {"(version)": str(package.version), **dict(_described(package.description))}
    speller = _Speller(package.weights)
    for name, function in sorted(package.functions.items()):
        lines[f"{name}(inputs)"] = f"{function.opset} {_named(function.inputs)}"
        lines |= {f"{name}.{k}": v for k, v in speller.lines(function.block)}
    main = package.functions[package.description.default or "main"]
    decoder = _Decoder(main.block, package.weights, OPSETS.get(main.opset, 18))
    words = dict(decoder.words())
    nodes = tuple(_node(o, words) for o in main.block.operations if not _decodes(o))
    return Listing(nodes=nodes, constants=dict(decoder.constants()), lines=lines)


def _decodes(operation: Operation) -> bool:
    return operation.op == "const" or operation.op.startswith("constexpr_")


def _node(operation: Operation, known: Mapping[str, str]) -> Node:
    """Return an operation; its attributes are those of its inputs that are words, such as a mode."""
    inputs = tuple(v for values in operation.inputs.values() for v in values if isinstance(v, str))
    told = {k: known[v] for k, a in operation.inputs.items() for v in a if isinstance(v, str) and v in known}
    outputs = tuple(n.name for n in operation.outputs)
    words = {k: ", ".join(v if isinstance(v, str) else "..." for v in a) for k, a in operation.inputs.items()}
    line = operation_line(operation.op, words, _named(operation.outputs))
    return Node(operation.op, inputs, outputs, line, told)


class _Decoder:
    """Decodes the constants of one block."""

    def __init__(self, block: Block, weights: Weights, opset: int) -> None:
        self.weights, self.opset = weights, opset
        self.stored = {o.outputs[0].name: o.attributes["val"] for o in block.operations if o.op == "const"}
        self.coded = {n.name: o for o in block.operations if o.op.startswith("constexpr_") for n in o.outputs}

    def constants(self) -> Iterator[tuple[str, Constant]]:
        """Yield what operations see: plain constants, and those that are decoded."""
        hidden = {v for o in self.coded.values() for a in o.inputs.values() for v in a if isinstance(v, str)}
        for name, value in self.stored.items():
            if name not in hidden and value.items is None and value.type.dtype and value.type.dtype.bits:
                yield name, Constant(partial(_told, name, partial(self.plain, value)))
        for name, operation in self.coded.items():
            if name not in hidden:
                yield name, self.decoded(name, operation)

    def words(self) -> Iterator[tuple[str, str]]:
        """Yield the constants that are words."""
        for name, value in self.stored.items():
            dtype = value.type.dtype
            if dtype and dtype.proto == STRING and value.type.shape == () and value.items is None:
                yield name, str(decode(value, self.weights))

    def plain(self, value: Value) -> Array:
        """Return a stored constant."""
        return np.asarray(decode(value, self.weights))

    def decoded(self, name: str, operation: Operation) -> Constant:
        """Return what an operation decodes, with its table or its steps."""
        parts, word = self._parts(operation), DECODERS.get(operation.op)
        table = partial(_told, name, partial(self._array, parts["lut"])) if word == "lut" else None
        steps = partial(self._steps, parts, operation.outputs[0].type)
        scale = partial(_told, name, steps) if word == "scale" else None
        return Constant(partial(_told, name, partial(self._run, name, operation)), scale=scale, table=table)

    def _parts(self, operation: Operation) -> dict[str, str | Value]:
        found: dict[str, str | Value] = {k: v for k, v in operation.attributes.items() if k != "name"}
        return found | {k: v[0] for k, v in operation.inputs.items() if v}

    def _array(self, part: str | Value) -> Array:
        if isinstance(part, Value):
            return self.plain(part)
        return self._run(part, self.coded[part]) if part in self.coded else self.plain(self.stored[part])

    def _run(self, name: str, operation: Operation) -> Array:
        """Decode by the interpreter's own operation, rounded to the declared type."""
        from flashbulb.runtimes.engines.mil.constants import hold
        from flashbulb.runtimes.engines.mil.ops import OPS
        from flashbulb.runtimes.engines.mil.table import At, convert

        op, given = OPS[operation.op], dict[str, Any]()
        for key, part in self._parts(operation).items():
            array = self._array(part)
            held = hold(array, self._kind(part, array))
            given[key] = convert(op.parameters[key].kind, [held])
        types = tuple(o.type for o in operation.outputs)
        if op.at:
            given["at"] = At(name, self.opset, types)
        found = op.function(**given)
        index = [o.name for o in operation.outputs].index(name)
        one = found[index] if isinstance(found, tuple) else found
        dtype = types[index].dtype
        return np.asarray(one.numpy()).astype(dtype.array if dtype else np.float32)

    def _kind(self, part: str | Value, array: Array) -> DType:
        value = part if isinstance(part, Value) else self.stored.get(part)
        if value is not None and value.type.dtype is not None:
            return value.type.dtype
        return next(d for d in DTYPES if d.array == array.dtype.str and d.bits >= 8)

    def _steps(self, parts: dict[str, str | Value], kind: Type) -> Array:
        """Return the steps of an affine code in a shape that broadcasts."""
        scale = self._array(parts["scale"]).astype(np.float32)
        if scale.ndim == 0:
            return scale
        axis, rank = int(self._array(parts["axis"])), len(kind.shape or ())
        return scale.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def _described(description: Description) -> Iterator[tuple[str, str]]:
    yield "(default function)", description.default
    for prefix, interface in (("", description.main), *description.functions.items()):
        for word, several in FEATURES.items():
            for index, feature in enumerate(getattr(interface, several)):
                yield f"{prefix}({word} {index})", feature_line(**asdict(feature))


class _Speller:
    """Writes programs down; constants that share their bytes make it read a bounded number of them."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.left = MOST_READS * sum(int(w.nbytes) for w in weights.values())

    def lines(self, block: Block, prefix: str = "") -> Iterator[tuple[str, str]]:
        """Yield the lines of a block, those of inner blocks after their operation's."""
        for operation in block.operations:
            name = prefix + (operation.outputs[0].name if operation.outputs else operation.op)
            arguments = {
                k: ", ".join(v if isinstance(v, str) else self.value(v) for v in values)
                for k, values in operation.inputs.items()
            }
            arguments |= {k: self.value(v) for k, v in operation.attributes.items() if k != "name"}
            yield name, operation_line(operation.op, arguments, _named(operation.outputs))
            for index, inner in enumerate(operation.blocks):
                yield from self.lines(inner, f"{name}/{index}/")
        yield f"{prefix}(outputs)", ", ".join(block.outputs)

    def value(self, value: Value) -> str:
        """Spell a constant, one in a weight file by the digest of its bytes."""
        if value.items is not None:
            return f"[{', '.join(self.value(v) for v in value.items)}]"
        dtype, shape = value.type.dtype, tuple(int(s or 0) for s in value.type.shape or ())
        if value.blob is not None:
            return f"{_kind(value.type)} #{digest(self.stored(*value.blob))}"
        found = decode(value, self.weights)
        if dtype is None or dtype.proto == STRING:
            return immediate(STRING, shape, [found] if isinstance(found, str) else found)
        if dtype.proto not in ARRAYS:
            return immediate(dtype.proto, shape, pack(found.view(np.uint8), dtype.bits).tobytes())
        return immediate(dtype.proto, shape, np.asarray(found).ravel().tolist())

    def stored(self, file: str, offset: int) -> bytes:
        """Read the bytes of one constant."""
        found = read_raw(self.weights, file, offset)
        self.left -= len(found)
        if self.left < 0:
            raise ProgramError(
                f"wanted constants of at most {MOST_READS} times the weight files, got more; do not use it"
            )
        return found


def _named(values: tuple[Named, ...]) -> str:
    return ", ".join(f"{v.name}: {_kind(v.type)}" for v in values)


def _kind(kind: Type) -> str:
    if kind.kind in ("list", "state"):
        return f"{kind.kind} of {_kind(Type('tensor', kind.dtype, kind.shape))}"
    return type_word(kind.kind, kind.dtype.proto if kind.dtype else 0, kind.shape)
