"""The table of operations: MIL's name -> a typed function, whose signature is the list of what it takes."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashbulb.runtimes.engines.mil.budget import current
from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.engines.mil.spec import Type

Ints = tuple[int, ...]
Bools = tuple[bool, ...]
Tensors = tuple[Tensor, ...]
Things = tuple[Any, ...]
"""Numbers or text, whatever was given."""
Run = Callable[..., list[Any]]
Blocks = tuple[Run, ...]
"""Nested blocks, called with the values of their inputs."""


class State:
    """Memory that outlives a prediction."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


@dataclass(frozen=True, slots=True)
class At:
    """Where an operation stands: some mean different things in different opsets."""

    name: str
    opset: int
    """The iOS version of the opset: 15, 16, 17, 18."""
    outputs: tuple[Type, ...]
    """Declared types of its outputs."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One input of an operation."""

    kind: Any
    required: bool


@dataclass(frozen=True, slots=True)
class Op:
    """One operation."""

    name: str
    function: Callable[..., Any]
    parameters: dict[str, Parameter]
    family: str
    """Name of the file that defines it."""
    exact: bool
    """It only moves values, so there is nothing to round."""
    at: bool
    """It wants to know where it stands."""


OPS: dict[str, Op] = {}


def register(name: str, function: Callable[..., Any], exact: bool = False) -> None:
    """Enter one function into the table."""
    hints = typing.get_type_hints(function)
    signature = inspect.signature(function).parameters
    own = {n: p for n, p in signature.items() if hints[n] not in (At, Blocks)}
    parameters = {n: Parameter(_plain(hints[n]), p.default is p.empty) for n, p in own.items()}
    family = function.__module__.rpartition(".")[2]
    OPS[name] = Op(name, function, parameters, family, exact, At in hints.values())


def op(name: str, exact: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter the function below into the table."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        register(name, function, exact)
        return function

    return enter


def _plain(hint: Any) -> Any:
    """Strip `| None`."""
    kinds = [k for k in typing.get_args(hint) if k is not type(None)]
    return kinds[0] if len(kinds) == 1 and type(None) in typing.get_args(hint) else hint


def convert(kind: Any, values: Sequence[Any]) -> Any:
    """Turn what an input is bound to into what the function wants.

    Raises:
        ProgramError: when it cannot be turned.
    """
    try:
        return _converted(kind, values)
    except (TypeError, ValueError, OverflowError) as error:
        raise ProgramError(f"wanted {kind}, got something else: {error}") from error


def _converted(kind: Any, values: Sequence[Any]) -> Any:
    if kind == Tensors:
        return tuple(values)
    if kind == Ints:
        return tuple(int(v) for value in values for v in _flat(value))
    if kind == Bools:
        return tuple(bool(v) for value in values for v in _flat(value))
    if kind == Things:
        return tuple(v for value in values for v in _flat(value))
    if len(values) != 1:
        raise ProgramError(f"wanted one value, got {len(values)}")
    if typing.get_origin(kind) is typing.Literal:
        return _word(typing.get_args(kind), values[0])
    if kind in (int, float, bool):
        return kind(_scalar(values[0]))
    wanted: Any = list if typing.get_origin(kind) is list else kind
    if not isinstance(values[0], wanted):
        raise ProgramError(f"wanted a {wanted.__name__}, got a {type(values[0]).__name__}")
    return values[0]


def _word(known: tuple[str, ...], value: Any) -> str:
    if not isinstance(value, str) or value not in known:
        raise ProgramError(f"wanted one of {', '.join(known)}, got {value!r}")
    return value


def _flat(value: Any) -> list[Any]:
    if isinstance(value, Tensor):
        return value.reshape(-1).tolist()
    return value if isinstance(value, list) else [value]


def _scalar(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ProgramError(f"wanted a single number, got {value if isinstance(value, str) else type(value)}")
    return value.item()


def bounded(shape: Sequence[int]) -> Ints:
    """Return a shape as integers, refusing one that is negative or has no room in the program's budget.

    Raises:
        ProgramError: with the shape or the sizes.
    """
    sizes, count = tuple(int(s) for s in shape), 1
    for size in sizes:
        count *= size
    if any(s < 0 for s in sizes):
        raise ProgramError(f"wanted a shape of sizes that are not negative, got {list(sizes)}")
    current().fits(count)
    return sizes


def half(value: Tensor) -> Tensor:
    """Round to the nearest fp16 number, still held as float32."""
    return value.to(torch.float16).to(torch.float32)
