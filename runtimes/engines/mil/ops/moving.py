"""Shapes: values keep their bits and change places."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.engines.mil.table import At, Bools, Ints, Tensors, bounded, op


@op("reshape", exact=True)
def reshape(x: Tensor, shape: Ints, at: At) -> Tensor:
    """Give new sizes: -1 is what is left over, 0 keeps a size (from iOS 17 on, counted from the right)."""
    if 0 not in shape or x.numel() == 0:
        return x.reshape(shape)
    if at.opset < 17 and len(shape) != x.ndim:
        raise ProgramError(f"wanted {x.ndim} sizes where one is 0, got {shape}")
    old = (1,) * max(0, len(shape) - x.ndim) + tuple(x.shape[max(0, x.ndim - len(shape)) :])
    return x.reshape([s or o for s, o in zip(shape, old, strict=True)])


@op("reshape_like", exact=True)
def reshape_like(x: Tensor, ref_tensors: Tensors, begins: Ints, ends: Ints, end_masks: Bools) -> Tensor:
    """Give sizes taken from other tensors' shapes."""
    parts = zip(ref_tensors, begins, ends, end_masks, strict=True)
    return x.reshape([s for ref, b, e, open_ in parts for s in ref.shape[b : None if open_ else e]])


@op("expand_dims", exact=True)
def expand_dims(x: Tensor, axes: Ints) -> Tensor:
    """Insert sizes of one, at the places that they have in the result."""
    rank = x.ndim + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


@op("squeeze", exact=True)
def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    """Drop sizes of one; other sizes are left alone."""
    return x.squeeze() if axes is None else x.squeeze(axes)


@op("transpose", exact=True)
def transpose(x: Tensor, perm: Ints) -> Tensor:
    """Permute the axes."""
    return x.permute(perm)


@op("concat", exact=True)
def concat(values: Tensors, axis: int, interleave: bool = False) -> Tensor:
    """Put tensors one behind the other along an axis, or take turns element by element."""
    bounded([sum(v.numel() for v in values)])
    if values[0].ndim == 0:
        return torch.stack(values)
    if interleave:
        axis %= values[0].ndim
        return torch.stack(values, axis + 1).flatten(axis, axis + 1)
    return torch.cat(values, axis)


@op("split", exact=True)
def split(
    x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None
) -> tuple[Tensor, ...]:
    """Cut along an axis into parts of given sizes, or into equal ones."""
    if split_sizes is not None:
        return torch.split(x, list(split_sizes), axis)
    if not num_splits or x.shape[axis] % num_splits:
        raise ProgramError(f"wanted a number that divides {x.shape[axis]}, got {num_splits}")
    return torch.split(x, x.shape[axis] // num_splits, axis)


@op("stack", exact=True)
def stack(values: Tensors, axis: int) -> Tensor:
    """Put tensors side by side along a new axis."""
    bounded([sum(v.numel() for v in values)])
    return torch.stack(values, axis)


@op("tile", exact=True)
def tile(x: Tensor, reps: Ints) -> Tensor:
    """Repeat along each axis."""
    bounded([s * r for s, r in zip(x.shape, reps, strict=True)])
    return x.repeat(reps)


@op("flatten2d", exact=True)
def flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    """Join the axes before and from a given one."""
    return x.reshape(math.prod(x.shape[:axis]), -1)


@op("shape", exact=True)
def shape(x: Tensor) -> Tensor:
    """Return the sizes."""
    return torch.tensor(x.shape, dtype=torch.int32)


@op("reverse", exact=True)
def reverse(x: Tensor, axes: Ints | None = None) -> Tensor:
    """Turn the order around along some axes, or all."""
    return torch.flip(x, list(range(x.ndim)) if axes is None else list(axes))


@op("reverse_sequence", exact=True)
def reverse_sequence(x: Tensor, lengths: Ints, seq_axis: int = 0, batch_axis: int = 0) -> Tensor:
    """Turn around the first elements of each sequence of a batch."""
    found = x.clone()
    for index, length in enumerate(lengths):
        rows = found.select(batch_axis, index)
        axis = seq_axis % x.ndim - (seq_axis % x.ndim > batch_axis % x.ndim)
        part = x.select(batch_axis, index).narrow(axis, 0, length)
        rows.narrow(axis, 0, length).copy_(torch.flip(part, [axis]))
    return found


@op("fill", exact=True)
def fill(shape: Ints, value: Tensor | None = None) -> Tensor:
    """Make a tensor of one value."""
    return (torch.zeros(()) if value is None else value).reshape(()).expand(bounded(shape)).contiguous()


@op("fill_like", exact=True)
def fill_like(ref_tensor: Tensor, value: Tensor | None = None) -> Tensor:
    """Make a tensor of one value in the shape of another."""
    filled: Tensor = fill(tuple(ref_tensor.shape), value)
    return filled


@op("pad", exact=True)
def pad(
    x: Tensor,
    pad: Ints,
    mode: Literal["constant", "reflect", "replicate"] = "constant",
    constant_val: float = 0.0,
) -> Tensor:
    """Pad the last axes: with a value, by reflection without the border, or by repeating the border."""
    if len(pad) % 2 or len(pad) > 2 * x.ndim:
        raise ProgramError(f"wanted two paddings per axis of {x.ndim}, got {len(pad)}")
    pairs = [(0, 0)] * (x.ndim - len(pad) // 2) + list(zip(pad[::2], pad[1::2], strict=True))
    bounded([s + a + b for s, (a, b) in zip(x.shape, pairs, strict=True)])
    if mode == "constant":
        return F.pad(x, [n for pair in reversed(pairs) for n in pair], value=constant_val)
    for axis, (before, behind) in enumerate(pairs):
        if before or behind:
            x = torch.index_select(x, axis, _borders(x.shape[axis], before, behind, mode))
    return x


def _borders(size: int, before: int, behind: int, mode: str) -> Tensor:
    """Say which element stands at each place of a padded axis."""
    places = torch.arange(-before, size + behind)
    if mode == "replicate":
        return places.clamp(0, size - 1)
    if max(before, behind) >= size:
        raise ProgramError(f"wanted reflections of less than {size} elements, got {max(before, behind)}")
    places = places.abs()
    return torch.where(places >= size, 2 * (size - 1) - places, places)
