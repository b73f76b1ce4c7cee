"""Pooling in one, two and three dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from flashbulb.runtimes.engines.mil.ops.convolution import Pad, outer, padded, paddings
from flashbulb.runtimes.engines.mil.table import Ints, bounded, op

AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
GREATEST = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
Pads = list[tuple[int, int]]


@op("avg_pool")
def avg_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: Pad,
    strides: Ints | None = None,
    pad: Ints | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """Average windows; what was padded counts as zeros, or not at all."""
    strides, pads, extra = _plan(x, kernel_sizes, pad_type, strides, pad, ceil_mode)
    total = _sums(F.pad(x, outer(_joined(pads, extra))), kernel_sizes, strides)
    if not any(extra) and not (exclude_padding_from_average and any(map(any, pads))):
        return total / math.prod(kernel_sizes)
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
    ones = F.pad(ones, outer(pads), value=0.0 if exclude_padding_from_average else 1.0)
    counts = _sums(F.pad(ones, outer([(0, e) for e in extra])), kernel_sizes, strides)
    return total / counts


@op("l2_pool")
def l2_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: Pad,
    strides: Ints | None = None,
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Return the root of the sum of squares of windows."""
    strides, pads, extra = _plan(x, kernel_sizes, pad_type, strides, pad, ceil_mode)
    return torch.sqrt(_sums(F.pad(x * x, outer(_joined(pads, extra))), kernel_sizes, strides))


@op("max_pool", exact=True)
def max_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: Pad,
    strides: Ints | None = None,
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """Return the greatest value of windows; padding is never the greatest."""
    strides, pads, extra = _plan(x, kernel_sizes, pad_type, strides, pad, ceil_mode)
    padded = F.pad(x, outer(_joined(pads, extra)), value=-math.inf)
    found: Tensor = GREATEST[x.ndim - 2](padded, kernel_sizes, strides)
    return found


def _plan(
    x: Tensor, kernel: Ints, pad_type: Pad, strides: Ints | None, pad: Ints | None, ceil_mode: bool
) -> tuple[Ints, Pads, list[int]]:
    """Return strides, paddings, and how much further the last windows reach when sizes round up."""
    ones = (1,) * len(kernel)
    strides = strides or ones
    pads = paddings(pad_type, pad or (0,) * 2 * len(kernel), x.shape[2:], kernel, strides, ones)
    bounded([*x.shape[:2], *padded(x, pads)])
    extra = [0] * len(kernel)
    if ceil_mode:
        sizes = zip(x.shape[2:], kernel, strides, pads, strict=True)
        extra = [_reach(n, k, s, p) for n, k, s, p in sizes]
    return strides, pads, extra


def _reach(size: int, kernel: int, stride: int, pad: tuple[int, int]) -> int:
    padded = size + sum(pad)
    windows = -(-(padded - kernel) // stride) + 1
    if (windows - 1) * stride >= size + pad[0] and sum(pad) > 0:
        windows -= 1
    return max(0, (windows - 1) * stride + kernel - padded)


def _joined(pads: Pads, extra: Sequence[int]) -> Pads:
    return [(a, b + e) for (a, b), e in zip(pads, extra, strict=True)]


def _sums(x: Tensor, kernel: Ints, strides: Ints) -> Tensor:
    found: Tensor = AVERAGE[x.ndim - 2](x, kernel, strides)
    return found * math.prod(kernel)
