"""Quantization of activations."""

from __future__ import annotations

import torch
from torch import Tensor

from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.engines.mil.table import op

RANGES = {"int8": (-128, 127, torch.int8), "uint8": (0, 255, torch.uint8)}


def _along(value: Tensor, axis: int | None, rank: int) -> Tensor:
    value = value.to(torch.float32)
    if value.ndim == 0 or axis is None:
        return value
    shape = [1] * rank
    shape[axis] = -1
    return value.reshape(shape)


@op("quantize", exact=True)
def quantize(
    input: Tensor,  # noqa: A002 - MIL's name of it
    scale: Tensor,
    output_dtype: str,
    zero_point: Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    """Return round(input / scale) + zero point, bounded to the type."""
    if output_dtype not in RANGES:
        raise ProgramError(f"wanted a type of {list(RANGES)}, got {output_dtype!r}")
    low, high, dtype = RANGES[output_dtype]
    steps = torch.round(input / _along(scale, axis, input.ndim))
    if zero_point is not None:
        steps = steps + _along(zero_point, axis, input.ndim)
    return steps.clamp(low, high).to(dtype)


@op("dequantize")
def dequantize(
    input: Tensor,  # noqa: A002 - MIL's name of it
    scale: Tensor,
    zero_point: Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    """Return scale * (input - zero point)."""
    steps = input.to(torch.float32)
    if zero_point is not None:
        steps = steps - _along(zero_point, axis, input.ndim)
    return steps * _along(scale, axis, input.ndim)
