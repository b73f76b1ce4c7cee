"""Parts of a tensor: slices, and elements by their index."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.engines.mil.table import At, Bools, Ints, bounded, op


def places(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None,
    begin_mask: Bools | None,
    end_mask: Bools | None,
    squeeze_mask: Bools | None,
) -> list[range]:
    """Return the indices that a slice takes on each axis, as numpy's slices do."""
    rank = x.ndim
    if len(begin) != rank or len(end) != rank:
        raise ProgramError(f"wanted {rank} begins and ends, got {len(begin)} and {len(end)}")
    found = []
    for axis, size in enumerate(x.shape):
        if squeeze_mask and squeeze_mask[axis]:
            start = 0 if begin_mask and begin_mask[axis] else begin[axis]
            if not -size <= start < size:
                raise ProgramError(f"wanted one element of {size} on axis {axis}, got number {start}")
            found.append(range(start % size, start % size + 1))
            continue
        first = None if begin_mask and begin_mask[axis] else begin[axis]
        last = None if end_mask and end_mask[axis] else end[axis]
        found.append(range(*slice(first, last, stride[axis] if stride else 1).indices(size)))
    return found


@op("slice_by_index", exact=True)
def slice_by_index(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """Slice each axis from begin to end by stride; masks leave an end open or drop the axis."""
    for axis, chosen in enumerate(places(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)):
        if len(chosen) == x.shape[axis] and chosen.step == 1:
            continue
        x = _taken(x, axis, chosen)
    dropped = [axis for axis, mask in enumerate(squeeze_mask or ()) if mask]
    return x.squeeze(dropped) if dropped else x


def _taken(x: Tensor, axis: int, chosen: range) -> Tensor:
    if chosen.step > 0:
        cut = [slice(None)] * axis + [slice(chosen.start, max(chosen.start, chosen.stop), chosen.step)]
        return x[tuple(cut)]
    return torch.index_select(x, axis, torch.tensor(list(chosen), dtype=torch.int64))


@op("slice_by_size", exact=True)
def slice_by_size(x: Tensor, begin: Ints, size: Ints) -> Tensor:
    """Slice each axis from begin on by size; -1 takes what is left."""
    for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
        first += x.shape[axis] if first < 0 else 0
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


@op("slice_update", exact=True)
def slice_update(
    x: Tensor,
    update: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """Return x with a slice of it replaced."""
    chosen = places(x, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    found = x.clone()
    grid = torch.meshgrid(*(torch.tensor(list(c), dtype=torch.int64) for c in chosen), indexing="ij")
    found[grid] = update.reshape([len(c) for c in chosen]).to(x.dtype)
    return found


def checked(indices: Tensor, size: int, at: At) -> Tensor:
    """Return indices in [0, size); up to iOS 16 a negative one counts from the end.

    Raises:
        ProgramError: for an index outside; on a device nothing says what comes then.
    """
    indices = indices.to(torch.int64)
    if at.opset < 17:
        indices = torch.where(indices < 0, indices + size, indices)
    if indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= size):
        raise ProgramError(f"wanted indices in [0, {size}), got {int(indices.min())} to {int(indices.max())}")
    return indices


@op("gather", exact=True)
def gather(
    x: Tensor, indices: Tensor, at: At, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """Take slices along an axis; the first ``batch_dims`` axes of both go together."""
    axis %= x.ndim
    chosen = checked(indices, x.shape[axis], at)
    shape = [*x.shape[:axis], *indices.shape[batch_dims:], *x.shape[axis + 1 :]]
    bounded(shape)
    if not batch_dims:
        return torch.index_select(x, axis, chosen.reshape(-1)).reshape(shape)
    batch, between = math.prod(x.shape[:batch_dims]), math.prod(x.shape[batch_dims:axis])
    rows = x.reshape(batch, between, x.shape[axis], -1)
    where = chosen.reshape(batch, 1, -1, 1).expand(-1, between, -1, rows.shape[3])
    return torch.gather(rows, 2, where).reshape(shape)


@op("gather_along_axis", exact=True)
def gather_along_axis(
    x: Tensor, indices: Tensor, at: At, axis: int = 0, validate_indices: bool = False
) -> Tensor:
    """Take one element along an axis for each index."""
    return torch.gather(x, axis, checked(indices, x.shape[axis], at))


@op("gather_nd", exact=True)
def gather_nd(
    x: Tensor, indices: Tensor, at: At, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """Take slices by indices of several axes, which stand in the last axis of ``indices``."""
    depth, batch = indices.shape[-1], math.prod(x.shape[:batch_dims])
    inner = x.shape[batch_dims : batch_dims + depth]
    bounded([*indices.shape[:-1], *x.shape[batch_dims + depth :]])
    rows = x.reshape(batch, *inner, -1)
    chosen = [checked(indices[..., i], n, at).reshape(batch, -1) for i, n in enumerate(inner)]
    found = rows[(torch.arange(batch)[:, None], *chosen)]
    return found.reshape(*indices.shape[:-1], *x.shape[batch_dims + depth :])
