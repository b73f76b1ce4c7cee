"""Functions of one tensor, element by element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from flashbulb.runtimes.engines.mil.dtypes import BY_NAME, held_dtype
from flashbulb.runtimes.engines.mil.table import op, register

Kind = Literal[
    "bool", "fp16", "fp32", "fp64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"
]
PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "logical_not": torch.logical_not,
    "round": torch.round,
    "sign": torch.sign,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def apply(x: Tensor) -> Tensor:
        return function(x)

    return apply


for _name, _function in PLAIN.items():
    register(_name, _unary(_function))


@op("clip")
def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    """Bound values to [alpha, beta]."""
    return torch.clamp(x, alpha, beta)


@op("inverse")
def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    """Return 1 / (x + epsilon)."""
    return torch.reciprocal(x + epsilon)


@op("log")
def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    """Return the natural logarithm of x + epsilon."""
    return torch.log(x + epsilon)


@op("rsqrt")
def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """Return 1 / sqrt(x + epsilon)."""
    return torch.rsqrt(x + epsilon)


@op("threshold")
def threshold(x: Tensor, alpha: float) -> Tensor:
    """Return the greater of x and alpha."""
    return torch.clamp_min(x, alpha)


@op("cast")
def cast(x: Tensor, dtype: Kind) -> Tensor:
    """Change the element type; whole numbers of floats drop the fraction, and all but 0 is true."""
    if dtype == "uint16":
        return x.to(torch.int32) & 0xFFFF
    if dtype in ("int8", "uint8", "int16") and x.is_floating_point():
        x = x.to(torch.int32)  # first to a whole number, then wrapped: the direct way is undefined
    return x.to(held_dtype(BY_NAME[dtype]))


@op("identity", exact=True)
def identity(x: Tensor) -> Tensor:
    """Return x."""
    return x
