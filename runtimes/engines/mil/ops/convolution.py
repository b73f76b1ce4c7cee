"""Convolutions in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.engines.mil.table import Ints, bounded, op

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}

Pad = Literal["valid", "custom", "same", "same_lower"]


def paddings(
    pad_type: Pad, pad: Ints, sizes: Sequence[int], kernel: Sequence[int], strides: Ints, dilations: Ints
) -> list[tuple[int, int]]:
    """Return how much to pad before and behind each spatial axis."""
    if pad_type == "valid":
        return [(0, 0)] * len(sizes)
    if pad_type == "custom":
        if len(pad) != 2 * len(sizes):
            raise ProgramError(f"wanted {2 * len(sizes)} paddings, got {len(pad)}")
        return list(zip(pad[::2], pad[1::2], strict=True))
    found = []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size)
        less, more = total // 2, total - total // 2
        found.append((less, more) if pad_type == "same" else (more, less))
    return found


def outer(pads: Sequence[tuple[int, int]]) -> list[int]:
    """Order paddings as torch wants them, the last axis first."""
    return [side for pair in reversed(pads) for side in pair]


def padded(x: Tensor, pads: Sequence[tuple[int, int]]) -> list[int]:
    """Return the spatial sizes once they are padded."""
    return [n + a + b for n, (a, b) in zip(x.shape[2:], pads, strict=True)]


@op("conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Ints | None = None,
    pad_type: Pad = "valid",
    pad: Ints = (),
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """Convolve x (b c ...) with weight (o c/groups ...)."""
    rank = x.ndim - 2
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    pads = paddings(pad_type, pad, x.shape[2:], weight.shape[2:], strides, dilations)
    bounded([x.shape[0], max(x.shape[1], weight.shape[0]), *padded(x, pads)])
    if any(a != b for a, b in pads):
        x, pads = F.pad(x, outer(pads)), [(0, 0)] * rank
    x = x.contiguous()  # in the strides of a transposition torch would copy the whole weight each time
    found: Tensor = CONV[rank](x, weight, bias, strides, [a for a, _ in pads], dilations, groups)
    return found


@op("conv_quantized")
def conv_quantized(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    quantization_type: str = "linear",
    nbits: int = 8,
    quant_scale: Tensor | None = None,
    quant_bias: Tensor | None = None,
    strides: Ints | None = None,
    pad_type: Pad = "valid",
    pad: Ints = (),
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """Convolve with a weight of whole numbers and one scale and offset per output channel."""
    if quantization_type != "linear" or nbits != 8:
        raise ProgramError(f"wanted linear quantization of 8 bits, got {quantization_type!r} of {nbits}")
    shape = (-1, *[1] * (weight.ndim - 1))
    plain = weight.to(torch.float32)
    plain = plain if quant_scale is None else plain * quant_scale.reshape(shape)
    plain = plain if quant_bias is None else plain + quant_bias.reshape(shape)
    found: Tensor = conv(x, plain, bias, strides, pad_type, pad, dilations, groups)
    return found


@op("conv_transpose")
def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Ints = (),
    output_shape: Ints | None = None,
    pad_type: Pad = "valid",
    strides: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """Transpose a convolution: spread x (b i ...) with weight (i o/groups ...), then cut to size."""
    rank = x.ndim - 2
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    zeros = [0] * rank
    spread = zip(x.shape[2:], weight.shape[2:], strides, dilations, strict=True)
    bounded([x.shape[0], weight.shape[1] * groups, *((n - 1) * s + (k - 1) * d + 1 for n, k, s, d in spread)])
    full: Tensor = TRANSPOSED[rank](x, weight, None, strides, zeros, zeros, groups, dilations)
    sizes = output_shape[-rank:] if output_shape else None
    for axis in range(rank):
        have, stride = full.shape[axis + 2], strides[axis]
        before, behind = (pad[2 * axis], pad[2 * axis + 1]) if pad_type == "custom" and pad else (0, 0)
        wanted = sizes[axis] if sizes else have - before - behind
        if pad_type in ("same", "same_lower"):
            wanted = sizes[axis] if sizes else x.shape[axis + 2] * stride
            total = max(0, have - wanted)
            before = total // 2 if pad_type == "same" else total - total // 2
        full = _window(full, axis + 2, before, wanted)
    return full if bias is None else full + bias.reshape(-1, *[1] * rank)


def _window(x: Tensor, axis: int, start: int, size: int) -> Tensor:
    """Cut ``size`` elements from ``start`` on, filling with zeros what lies behind the end."""
    found = x.narrow(axis, start, max(0, min(size, x.shape[axis] - start)))
    if (missing := size - found.shape[axis]) > 0:
        bounded([*x.shape[:axis], size, *x.shape[axis + 1 :]])
        found = F.pad(found, [0, 0] * (x.ndim - 1 - axis) + [0, missing])
    return found
