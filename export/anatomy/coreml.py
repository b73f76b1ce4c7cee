"""Write down the program of an `.mlpackage` line by line, through coremltools' own protobuf classes.

The interpreter's reader writes the same lines without coremltools
(`flashbulb.runtimes.engines.mil.listing`): what the one records at export is held at check by the other.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flashbulb.export.anatomy.listing import AnatomyError, digest, spell

MODEL = "Data/com.apple.CoreML/model.mlmodel"
METADATA = struct.Struct("<IIQQ")
ARRAYS = {
    1: "|b1", 10: "<f2", 11: "<f4", 12: "<f8", 21: "|i1", 22: "<i2", 23: "<i4", 24: "<i8", 31: "|u1",
    32: "<u2", 33: "<u4", 34: "<u8",
}  # fmt: skip
"""numpy's types for MIL's `DataType`, of those that are stored as whole bytes."""
STRING = 2
ELEMENTS = {65552: "float16", 65568: "float32", 65600: "float64", 131104: "int32", 131080: "int8"}
"""numpy's words for the element types of a description's arrays."""
COLOURS = {10: "GRAYSCALE", 20: "RGB", 30: "BGR", 40: "GRAYSCALE_FLOAT16"}
FEATURES = {"input": "inputs", "output": "outputs", "state": "states"}


def package_lines(path: Path) -> dict[str, str]:
    """Read a package that coremltools wrote: name -> line of every function."""
    from coremltools.proto import Model_pb2

    model = Model_pb2.Model()
    model.ParseFromString((path / MODEL).read_bytes())
    weights = {
        f"@model_path/weights/{p.name}": np.fromfile(p, np.uint8)
        for p in sorted((path / MODEL).parent.glob("weights/*"))
    }
    lines = {"(version)": str(model.specificationVersion), **dict(_described(model.description))}
    for name, function in sorted(model.mlProgram.functions.items()):
        writer = _Writer(weights)
        lines[f"{name}(inputs)"] = f"{function.opset} {writer.named(function.inputs)}"
        block = function.block_specializations[function.opset]
        lines |= {f"{name}.{k}": v for k, v in writer.block(block)}
    return lines


def _described(description: Any) -> Iterator[tuple[str, str]]:
    """Yield the lines of what Core ML and an app read of a model: its inputs, outputs and states."""
    yield "(default function)", description.defaultFunctionName
    for interface in (description, *description.functions):
        prefix = interface.name if interface is not description else ""
        for word in FEATURES:
            for index, feature in enumerate(getattr(interface, word)):
                yield f"{prefix}({word} {index})", feature_line(**_feature(feature))


def _feature(feature: Any) -> dict[str, Any]:
    kind = feature.type.WhichOneof("Type") or "unknown"
    found = {"name": feature.name, "kind": kind.removesuffix("Type"), "optional": feature.type.isOptional}
    if kind == "imageType":
        return found | _image(feature.type.imageType)
    if kind in ("multiArrayType", "stateType"):
        state = kind == "stateType"
        array = feature.type.stateType.arrayType if state else feature.type.multiArrayType
        found |= {"kind": "state" if state else "array", **_array(array)}
        word = array.WhichOneof("defaultOptionalValue") if found["optional"] else None
        found["default"] = float(getattr(array, word)) if word else 0.0 if found["optional"] else None
    return found


def _array(array: Any) -> dict[str, Any]:
    return {
        "dtype": element(array.dataType),
        "shape": tuple(array.shape),
        "ranges": tuple(_range(r) for r in array.shapeRange.sizeRanges),
        "choices": tuple(tuple(s.shape) for s in array.enumeratedShapes.shapes),
    }


def _image(image: Any) -> dict[str, Any]:
    both, free = image.imageSizeRange, image.HasField("imageSizeRange")
    return {
        "shape": (image.height, image.width),
        "ranges": (_range(both.heightRange), _range(both.widthRange)) if free else (),
        "choices": tuple((s.height, s.width) for s in image.enumeratedSizes.sizes),
        "colour": COLOURS.get(image.colorSpace, ""),
    }


def _range(sizes: Any) -> tuple[int, int | None]:
    return sizes.lowerBound, None if sizes.upperBound < 0 else sizes.upperBound


def element(number: int) -> str:
    """Return numpy's word for the elements of an array, or what is no type."""
    return ELEMENTS.get(number, f"type {number}")


def feature_line(
    *,
    name: str,
    kind: str,
    optional: bool = False,
    dtype: str = "",
    shape: tuple[int, ...] = (),
    default: float | None = None,
    ranges: tuple[tuple[int, int | None], ...] = (),
    choices: tuple[tuple[int, ...], ...] = (),
    colour: str = "",
) -> str:
    """Spell one input, output or state of a description."""
    words = [f"{name}:", *["optional"] * optional, kind, dtype or colour, str(list(shape))]
    words += [f"default {default}"] * (default is not None)
    words += [f"from {low} to {'any' if high is None else high}" for low, high in ranges]
    words += [f"or {list(choice)}" for choice in choices]
    return " ".join(word for word in words if word)


class _Writer:
    def __init__(self, weights: dict[str, Any]) -> None:
        self.weights = weights

    def block(self, block: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
        """Yield the lines of a block, those of inner blocks after their operation's."""
        for operation in block.operations:
            name = prefix + (operation.outputs[0].name if operation.outputs else operation.type)
            arguments = {k: self.argument(v) for k, v in operation.inputs.items()}
            arguments |= {k: self.value(v) for k, v in operation.attributes.items() if k != "name"}
            yield name, operation_line(operation.type, arguments, self.named(operation.outputs))
            for index, inner in enumerate(operation.blocks):
                yield from self.block(inner, f"{name}/{index}/")
        yield f"{prefix}(outputs)", ", ".join(block.outputs)

    def named(self, values: Any) -> str:
        """Spell names with their types."""
        return ", ".join(f"{v.name}: {self.kind(v.type)}" for v in values)

    def kind(self, kind: Any) -> str:
        """Spell a type."""
        word = kind.WhichOneof("type").removesuffix("Type")
        if word == "tensor":
            found = kind.tensorType
            sizes = [d.constant.size if d.HasField("constant") else None for d in found.dimensions]
            return type_word(word, found.dataType, None if found.rank < 0 else tuple(sizes))
        if word in ("list", "state"):
            inner = getattr(kind, f"{word}Type")
            inner = inner.type if word == "list" else inner.wrappedType
            return f"{word} of {self.kind(inner)}"
        return str(word)

    def argument(self, argument: Any) -> str:
        """Spell what is bound to one parameter."""
        words = (b.name if b.HasField("name") else self.value(b.value) for b in argument.arguments)
        return ", ".join(words)

    def value(self, value: Any) -> str:
        """Spell a constant."""
        if value.HasField("blobFileValue"):
            place = value.blobFileValue
            raw = _record(self.weights.get(place.fileName), place.offset)
            return f"{self.kind(value.type)} #{digest(raw)}"
        if value.immediateValue.HasField("list"):
            return f"[{', '.join(self.value(v) for v in value.immediateValue.list.values)}]"
        tensor, kind = value.immediateValue.tensor, value.type.tensorType
        shape = tuple(d.constant.size for d in kind.dimensions)
        word = tensor.WhichOneof("value")
        values = getattr(tensor, word).values if word else b""
        return immediate(kind.dataType, shape, values)


def operation_line(op: str, arguments: dict[str, str], outputs: str) -> str:
    """Spell an operation."""
    inside = "; ".join(f"{k}={v}" for k, v in sorted(arguments.items()))
    return f"{op}({inside}) -> {outputs}"


def type_word(kind: str, dtype: int, shape: tuple[int | None, ...] | None) -> str:
    """Spell a tensor's type."""
    return f"{kind} {dtype}{list(shape) if shape is not None else '[...]'}"


def immediate(dtype: int, shape: tuple[int, ...], values: Any) -> str:
    """Spell a constant in place: raw bytes, numbers or text."""
    if dtype == STRING:
        return repr(list(values))
    kind = ARRAYS.get(dtype)
    if kind is None:
        return f"{type_word('tensor', dtype, shape)} #{digest(bytes(values))}"
    array = np.frombuffer(values, kind) if isinstance(values, bytes) else np.array(list(values)).astype(kind)
    return spell(array.reshape(shape))


def _record(data: Any, offset: int) -> bytes:
    if data is None or offset + METADATA.size > data.size:
        raise AnatomyError(f"wanted a weight at byte {offset}, the package has none there; export it again")
    _, _, size, start = METADATA.unpack(data[offset : offset + METADATA.size].tobytes())
    return bytes(data[start : start + size])
