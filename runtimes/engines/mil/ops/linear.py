"""Products of matrices, and attention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.engines.mil.table import Tensors, bounded, op


@op("linear")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x (... i) times the transpose of weight (o i), plus bias (o)."""
    bounded([*x.shape[:-1], weight.shape[0]])
    if weight.is_floating_point():
        return F.linear(x, weight, bias)
    found = torch.matmul(x, weight.T)
    return found if bias is None else found + bias


@op("matmul")
def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """Return the batched product; a flag swaps the last two sizes, of a vector it does nothing."""
    x = x.transpose(-1, -2) if transpose_x and x.ndim > 1 else x
    y = y.transpose(-1, -2) if transpose_y and y.ndim > 1 else y
    outer = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    bounded([*outer, *x.shape[-2:-1], *(y.shape[-1:] if y.ndim > 1 else ())])
    return torch.matmul(x, y)


@op("einsum")
def einsum(values: Tensors, equation: str) -> Tensor:
    """Return the sum of products that an equation says."""
    if len(values) != 2:
        raise ProgramError(f"wanted two factors, got {len(values)}")
    parts, _, result = equation.replace(" ", "").partition("->")
    pairs = zip(parts.split(","), values, strict=True)
    sizes = {letter: n for part, v in pairs for letter, n in zip(part, v.shape, strict=False)}
    bounded([sizes.get(letter, 1) for letter in result])
    return torch.einsum(equation, *values)


@op("scaled_dot_product_attention")
def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    """Attend: query (... l e), key (... s e), value (... s v), mask (... l s), added or what to keep."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask)
