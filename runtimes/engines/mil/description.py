"""What a model says of its own inputs and outputs: arrays with free sizes, pictures, states, classes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flashbulb.export.anatomy.coreml import COLOURS, element
from flashbulb.runtimes.engines.mil.wire import (
    Field,
    Message,
    Reader,
    first,
    floats,
    numbers,
    signed,
    text,
    whole,
)

Range = tuple[int, int | None]
"""Least and greatest size; None where there is no greatest."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One input, output or state."""

    name: str
    kind: str
    """`array`, `image`, `state`, or what else Core ML has, such as `dictionary` and `string`."""
    optional: bool = False
    dtype: str = ""
    """numpy's word for the elements of an array or a state."""
    shape: tuple[int, ...] = ()
    """Sizes of an array, the usual ones where they are free; height and width of an image."""
    default: float | None = None
    """Fills an optional input that is not given."""
    ranges: tuple[Range, ...] = ()
    """Bounds of each size, when they are free; height and width for an image."""
    choices: tuple[tuple[int, ...], ...] = ()
    """The shapes to choose from, when they are enumerated."""
    colour: str = ""
    """Layout of an image: `RGB`, `BGR`, `GRAYSCALE` or `GRAYSCALE_FLOAT16`."""


@dataclass(frozen=True, slots=True)
class Interface:
    """Inputs and outputs of one function."""

    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    states: tuple[Feature, ...]


@dataclass(frozen=True, slots=True)
class Description:
    """The interfaces of all functions; the default one has no name when there is only one."""

    default: str
    main: Interface
    functions: dict[str, Interface]

    def interface(self, function: str) -> Interface:
        """Return the interface of one function."""
        return self.functions.get(function, self.main)


def read_description(reader: Reader, data: Field) -> Description:
    """Read a `ModelDescription`."""
    found = reader.message(data)
    functions = [reader.message(f) for f in found.get(20, [])]
    return Description(
        default=text(first(found, 21)),
        main=_interface(reader, found, 1, 10, 13),
        functions={text(first(f, 1)): _interface(reader, f, 2, 3, 6) for f in functions},
    )


def _interface(reader: Reader, found: Message, inputs: int, outputs: int, states: int) -> Interface:
    return Interface(
        *(tuple(_feature(reader, f) for f in found.get(n, [])) for n in (inputs, outputs, states))
    )


def _feature(reader: Reader, data: Field) -> Feature:
    found = reader.message(data)
    kind, name = reader.message(first(found, 3, memoryview(b""))), text(first(found, 1))
    optional = bool(whole(kind, 1000))
    if 5 in kind:
        return _array(reader, reader.message(kind[5][-1]), name, optional)
    if 4 in kind:
        return _image(reader, reader.message(kind[4][-1]), name, optional)
    if 8 in kind:
        inner = first(reader.message(kind[8][-1]), 1, memoryview(b""))
        return replace(_array(reader, reader.message(inner), name, optional), kind="state")
    words = {1: "int64", 2: "double", 3: "string", 6: "dictionary", 7: "sequence"}
    return Feature(name, next((words[n] for n in kind if n in words), "unknown"), optional)


def _array(reader: Reader, found: Message, name: str, optional: bool) -> Feature:
    ranges: tuple[Range, ...] = ()
    choices: tuple[tuple[int, ...], ...] = ()
    if 31 in found:
        ranges = tuple(_range(reader, r) for r in reader.message(found[31][-1]).get(1, []))
    if 21 in found:
        shapes = [reader.message(s) for s in reader.message(found[21][-1]).get(1, [])]
        choices = tuple(tuple(numbers(s.get(1, []))) for s in shapes)
    return Feature(
        name=name,
        kind="array",
        optional=optional,
        dtype=element(whole(found, 2)),
        shape=tuple(numbers(found.get(1, []))),
        default=_default(found) if optional else None,
        ranges=ranges,
        choices=choices,
    )


def _default(found: Message) -> float:
    if 41 in found:
        return float(numbers(found[41])[-1])
    return float(next((floats(found[n], t)[-1] for n, t in ((51, "<f4"), (61, "<f8")) if n in found), 0.0))


def _image(reader: Reader, found: Message, name: str, optional: bool) -> Feature:
    ranges: tuple[Range, ...] = ()
    choices: tuple[tuple[int, ...], ...] = ()
    if 31 in found:
        both = reader.message(found[31][-1])
        ranges = tuple(_range(reader, first(both, n, memoryview(b""))) for n in (2, 1))
    if 21 in found:
        sizes = [reader.message(s) for s in reader.message(found[21][-1]).get(1, [])]
        choices = tuple((whole(s, 2), whole(s, 1)) for s in sizes)
    return Feature(
        name=name,
        kind="image",
        optional=optional,
        shape=(whole(found, 2), whole(found, 1)),
        ranges=ranges,
        choices=choices,
        colour=COLOURS.get(whole(found, 3), ""),
    )


def _range(reader: Reader, data: Field) -> Range:
    found = reader.message(data)
    upper = signed(whole(found, 2))
    return whole(found, 1), None if upper < 0 else upper
