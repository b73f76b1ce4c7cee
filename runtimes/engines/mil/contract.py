"""Hold what a model says of itself, which is what apps read, to the function that it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

from flashbulb.distill.components import TensorSpec
from flashbulb.export.anatomy.coreml import feature_line
from flashbulb.runtimes.engines.mil.description import Description, Feature, Interface, Range
from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.engines.mil.spec import Function, Named, Type

BANDS = {"RGB": 3, "BGR": 3, "GRAYSCALE": 1, "GRAYSCALE_FLOAT16": 1}
"""Channels of a picture by its layout."""
SINGLE = {"string": "string", "int64": "int64", "double": "fp64"}
"""Element types of features that are one value."""
WORDS = {"float16": "fp16", "float32": "fp32", "float64": "fp64"}
"""MIL's words for numpy's, where they differ."""
Shape = tuple[int | None, ...]


def agreed(description: Description, function: Function, name: str) -> Interface:
    """Return the description of a function.

    Raises:
        ProgramError: naming every input, output and state that is not the function's own.
    """
    if description.functions and name not in description.functions:
        raise ProgramError(
            f"wanted a description of the function {name!r}, got those of {sorted(description.functions)}"
        )
    found = description.interface(name)
    made = {n.name: n for o in function.block.operations for n in o.outputs}
    made |= {n.name: n for n in function.inputs}
    outputs = [made[n] for n in function.block.outputs if n in made]
    states = [n for n in function.inputs if n.type.kind == "state"]
    inputs = [n for n in function.inputs if n.type.kind != "state"]
    problems = [
        *_problems("input", found.inputs, inputs),
        *_problems("output", found.outputs, outputs),
        *_problems("state", found.states, states),
    ]
    if problems:
        raise ProgramError(
            f"wanted a description of what the function {name!r} takes and gives, got another: "
            f"{'; '.join(problems)}; export it again"
        )
    return found


def told(interface: Interface, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> list[str]:
    """Return how a description differs from the tensors that a manifest promises."""
    found = []
    for word, features, specs in (
        ("input", interface.inputs, inputs),
        ("output", interface.outputs, outputs),
    ):
        known = {f.name: f for f in features}
        if names := sorted(set(known) ^ {s.name for s in specs}):
            found.append(f"{word}s {names} are in one of them only")
        for spec in specs:
            feature = known.get(spec.name)
            if feature is not None and (words := _promised(feature, spec)):
                found.append(f"{word} {spec.name!r} {words}")
    return found


def _promised(feature: Feature, spec: TensorSpec) -> str:
    wanted, got = f"array {spec.dtype} {list(spec.shape)}", feature_line(**{**asdict(feature), "name": ""})
    got = got.removeprefix(": ")
    return "" if wanted == got else f"is `{wanted}` in the manifest, `{got}` in the model"


def _problems(word: str, features: tuple[Feature, ...], values: list[Named]) -> Iterator[str]:
    """Compare one side of a function with its description."""
    described, own = [f.name for f in features], [n.name for n in values]
    if sorted(described) != sorted(own):
        yield f"{word}s {own} described as {described}"
        return
    kinds = {n.name: n.type for n in values}
    for feature in features:
        kind = kinds[feature.name]
        sized = word != "output" or feature.shape
        if words := "; ".join(_differences(feature if sized else _usual(feature, kind), kind)):
            yield f"{word} {feature.name!r}: {words}"


def _usual(feature: Feature, kind: Type) -> Feature:
    """Give an output the sizes of its value: Core ML lets them out where they are free, or none."""
    return replace(feature, shape=tuple(s or 1 for s in kind.shape or ()))


def _differences(feature: Feature, kind: Type) -> Iterator[str]:
    """Compare one value with its description."""
    dtype = kind.dtype.name if kind.dtype else kind.kind
    if feature.kind in ("array", "state"):
        if WORDS.get(feature.dtype, feature.dtype) != dtype:
            yield f"{dtype} described as {feature.dtype}"
        yield from _sizes(feature, kind.shape, feature.shape)
    elif feature.kind == "image":
        yield from _image(feature, dtype, kind.shape)
    elif SINGLE.get(feature.kind, feature.kind) != dtype:
        yield f"{dtype} described as {feature.kind}"


def _image(feature: Feature, dtype: str, shape: Shape | None) -> Iterator[str]:
    bands = BANDS.get(feature.colour)
    if bands is None or dtype not in ("fp16", "fp32"):
        yield f"{dtype} described as a picture of layout {feature.colour or 'unknown'}"
    elif shape is not None and (len(shape) != 4 or shape[:2] != (1, bands)):
        yield f"{spelled(shape)} described as a {feature.colour} picture, (1, {bands}, height, width)"
    else:
        yield from _sizes(feature, None if shape is None else shape[2:], feature.shape)


def _sizes(feature: Feature, wanted: Shape | None, got: tuple[int, ...]) -> Iterator[str]:
    """Compare a shape, and the sizes that it may have, with the declared ones."""
    whole = got in ((), (1,)) if wanted == () else _fits(wanted, got)
    if not whole:
        yield f"shape {spelled(wanted)} described as {list(got)}"
    elif feature.ranges and not _ranged(feature.ranges, wanted, got):
        yield f"shape {spelled(wanted)}, usually {list(got)}, described with the sizes {feature.ranges}"
    elif feature.choices and not (
        got in feature.choices and all(_fits(wanted, choice) for choice in feature.choices)
    ):
        yield f"shape {spelled(wanted)}, usually {list(got)}, described with the choices {feature.choices}"


def _fits(wanted: Shape | None, got: tuple[int, ...]) -> bool:
    return wanted is None or (
        len(wanted) == len(got) and all(w in (None, g) for w, g in zip(wanted, got, strict=True))
    )


def _ranged(ranges: tuple[Range, ...], wanted: Shape | None, got: tuple[int, ...]) -> bool:
    """Tell whether ranges hold the usual shape, and nothing but the declared sizes."""
    if len(ranges) != len(got):
        return False
    fixed = wanted or (None,) * len(got)
    return all(
        low <= size <= (size if high is None else high) and own in (None, low) and own in (None, high)
        for (low, high), size, own in zip(ranges, got, fixed, strict=True)
    )


def spelled(shape: Shape | None) -> str:
    """Write a declared shape for people."""
    return "any" if shape is None else str(["free" if s is None else s for s in shape])
