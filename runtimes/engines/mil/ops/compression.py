"""Compressed weights, opened: `constexpr_*` of iOS 16 (flat and packed) and of iOS 18 (shaped, by blocks)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from flashbulb.runtimes.engines.mil.dtypes import BY_NAME, held_dtype, unpack_bits
from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.engines.mil.table import At, Ints, bounded, op

PACKED = {1: "uint1", 2: "uint2", 3: "uint3", 4: "uint4", 6: "uint6", 8: "uint8"}


def _along(value: Tensor, axis: int, rank: int) -> Tensor:
    """Shape a number, or one per element of an axis, to broadcast over ``rank`` axes."""
    if value.ndim == 0:
        return value
    shape = [1] * rank
    shape[axis] = -1
    return value.reshape(shape)


@op("constexpr_affine_dequantize")
def affine_dequantize(quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: int) -> Tensor:
    """Return scale * (data - zero point), scales by one axis."""
    rank = quantized_data.ndim
    offset = _along(zero_point.to(torch.float32), axis, rank)
    return (quantized_data.to(torch.float32) - offset) * _along(scale, axis, rank)


@op("constexpr_cast", exact=True)
def constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    """Widen a weight."""
    if output_dtype not in BY_NAME or not BY_NAME[output_dtype].held:
        raise ProgramError(f"wanted a type of {sorted(BY_NAME)}, got {output_dtype!r}")
    return source_val.to(held_dtype(BY_NAME[output_dtype]))


@op("constexpr_lut_to_dense", exact=True)
def lut_to_dense(
    indices: Tensor, lut: Tensor, at: At, shape: Ints | None = None, vector_axis: int | None = None
) -> Tensor:
    """Look up a palette: a flat one by packed indices (iOS 16), or one per block, even of vectors (18)."""
    if shape is None:
        return _looked_up(indices, lut, vector_axis)
    bits = int(math.log2(max(1, lut.numel())))
    if 1 << bits != lut.numel() or bits not in PACKED:
        raise ProgramError(f"wanted a palette of 2, 4, 8, 16, 64 or 256 entries, got {lut.numel()}")
    packed = indices.reshape(-1).to(torch.uint8).numpy()
    codes = unpack_bits(packed, BY_NAME[PACKED[bits]], math.prod(bounded(shape)))
    return lut.reshape(-1)[torch.from_numpy(codes.astype(np.int64))].reshape(shape)


def _looked_up(indices: Tensor, lut: Tensor, vector_axis: int | None) -> Tensor:
    """Look up indices (...) in palettes (... entries vector), one palette per block of indices."""
    rank, entries, width = indices.ndim, lut.shape[-2], lut.shape[-1]
    if lut.ndim != rank + 2:
        raise ProgramError(f"wanted a palette of rank {rank + 2}, got {lut.ndim}")
    blocks = _blocks(tuple(indices.shape), tuple(lut.shape[:rank]))
    palette = torch.arange(math.prod(lut.shape[:rank])).reshape(lut.shape[:rank])
    codes = indices.to(torch.int64)
    if codes.numel() and int(codes.max()) >= entries:
        raise ProgramError(f"wanted indices under {entries}, got {int(codes.max())}")
    found = lut.reshape(-1, width)[_repeated(palette, blocks) * entries + codes]
    if width == 1:
        return found.squeeze(-1)
    if vector_axis is None:
        raise ProgramError("wanted an axis for the vectors of a palette, got none")
    axis = vector_axis % rank
    return found.movedim(-1, axis + 1).flatten(axis, axis + 1)


def _blocks(shape: Ints, parts: Ints) -> Ints:
    """Return the size of each block."""
    if len(shape) != len(parts) or any(not p or s % p for s, p in zip(shape, parts, strict=True)):
        raise ProgramError(f"wanted blocks that divide {shape}, got {parts} of them")
    return tuple(s // p for s, p in zip(shape, parts, strict=True))


def _repeated(value: Tensor, blocks: Ints) -> Tensor:
    for axis, size in enumerate(blocks):
        value = value.repeat_interleave(size, axis) if size > 1 else value
    return value


@op("constexpr_blockwise_shift_scale")
def blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """Return scale * (data - offset), one scale and offset per block."""
    blocks = _blocks(tuple(data.shape), tuple(scale.shape))
    plain = data.to(torch.float32)
    if offset is not None:
        plain = plain - _repeated(offset.to(torch.float32), blocks)
    return plain * _repeated(scale, blocks)


@op("constexpr_sparse_to_dense", exact=True)
def sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: Ints | None = None) -> Tensor:
    """Put values where a mask is set and zeros elsewhere; in iOS 16 the mask is packed bits."""
    if shape is not None:
        flat = unpack_bits(
            mask.reshape(-1).to(torch.uint8).numpy(), BY_NAME["uint1"], math.prod(bounded(shape))
        )
        mask = torch.from_numpy(flat).reshape(shape)
    kept = mask != 0
    if int(kept.sum()) != nonzero_data.numel():
        raise ProgramError(f"wanted {int(kept.sum())} values for the mask, got {nonzero_data.numel()}")
    found = torch.zeros(mask.shape, dtype=nonzero_data.dtype)
    found[kept] = nonzero_data.reshape(-1)
    return found


@op("constexpr_lut_to_sparse", exact=True)
def lut_to_sparse(
    indices_mask: Tensor, indices_nonzero_data: Tensor, lut: Tensor, vector_axis: int | None = None
) -> tuple[Tensor, Tensor]:
    """Look up the values of a sparse weight; return the mask, widened by vectors, and the values."""
    dense = _looked_up(sparse_to_dense(indices_nonzero_data, indices_mask), lut, vector_axis)
    mask = indices_mask
    if lut.shape[-1] > 1 and vector_axis is not None:
        mask = mask.repeat_interleave(lut.shape[-1], vector_axis)
    return mask, dense[mask != 0]


@op("constexpr_sparse_blockwise_shift_scale")
def sparse_blockwise_shift_scale(
    data_mask: Tensor, nonzero_data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Dequantize the values of a sparse weight; return the mask and the values."""
    dense = blockwise_shift_scale(sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask != 0]
