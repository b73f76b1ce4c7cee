"""Functions of two tensors, element by element, broadcast as numpy does, and the choice between two."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import zip_longest

import torch
from torch import Tensor

from flashbulb.runtimes.engines.mil.budget import current
from flashbulb.runtimes.engines.mil.table import op, register

Binary = Callable[[Tensor, Tensor], Tensor]

PLAIN: dict[str, Binary] = {
    "add": torch.add,
    "equal": torch.eq,
    "floor_div": torch.floor_divide,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mod": torch.remainder,
    "mul": torch.mul,
    "not_equal": torch.ne,
    "pow": torch.pow,
    "sub": torch.sub,
}


def _fit(*values: Tensor) -> None:
    """Refuse a result of broadcasting that there is no room for; of shapes that do not fit torch tells."""
    shapes = {v.shape for v in values if v.numel() > 1}
    if len(shapes) > 1:
        aligned = zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1)
        current().fits(math.prod(0 if 0 in sizes else max(sizes) for sizes in aligned))


def _binary(function: Binary) -> Binary:
    def apply(x: Tensor, y: Tensor) -> Tensor:
        _fit(x, y)
        return function(x, y)

    return apply


for _name, _function in PLAIN.items():
    register(_name, _binary(_function))


@op("real_div")
def real_div(x: Tensor, y: Tensor) -> Tensor:
    """Return x / y; of whole numbers the fraction is dropped."""
    _fit(x, y)
    if x.is_floating_point() or y.is_floating_point():
        return torch.div(x, y)
    return torch.div(x, y, rounding_mode="trunc")


@op("select", exact=True)
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Take a where cond holds and b elsewhere."""
    _fit(cond, a, b)
    return torch.where(cond.to(torch.bool), a, b)
