"""Writing into a tensor by index."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from flashbulb.runtimes.engines.mil.ops.slicing import checked
from flashbulb.runtimes.engines.mil.table import At, op

Combine = Literal["update", "add", "sub", "mul", "div", "max", "min"]
COMBINE: dict[str, Any] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
}


def written(data: Tensor, where: Tensor, updates: Tensor, mode: Combine) -> Tensor:
    """Combine updates into the flat data, one after the other: several may go to one place."""
    found = data.contiguous().numpy().copy().reshape(-1)
    index, values = where.reshape(-1).numpy(), updates.contiguous().numpy().reshape(-1)
    if mode == "update":
        found[index] = values
    elif mode == "div" and not data.is_floating_point():
        np.floor_divide.at(found, index, values)
    else:
        COMBINE[mode].at(found, index, values)
    return torch.from_numpy(found).reshape(data.shape)


def _flat(shape: torch.Size) -> Tensor:
    return torch.arange(math.prod(shape)).reshape(shape)


@op("scatter")
def scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    at: At,
    axis: int = 0,
    mode: Combine = "add",
    validate_indices: bool = False,
) -> Tensor:
    """Write slices along an axis."""
    axis %= data.ndim
    chosen = checked(indices, data.shape[axis], at)
    where = torch.index_select(_flat(data.shape), axis, chosen.reshape(-1))
    return written(data, where, updates.reshape(where.shape), mode)


@op("scatter_along_axis")
def scatter_along_axis(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    at: At,
    axis: int = 0,
    mode: Combine = "add",
    validate_indices: bool = False,
) -> Tensor:
    """Write one element along an axis for each index."""
    where = torch.gather(_flat(data.shape), axis, checked(indices, data.shape[axis], at))
    return written(data, where, updates, mode)


@op("scatter_nd")
def scatter_nd(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    at: At,
    mode: Combine = "add",
    validate_indices: bool = False,
) -> Tensor:
    """Write slices by indices of several axes, which stand in the last axis of ``indices``."""
    depth = indices.shape[-1]
    chosen = tuple(checked(indices[..., i], data.shape[i], at) for i in range(depth))
    where = _flat(data.shape)[chosen] if depth else _flat(data.shape).expand(*indices.shape[:-1], *data.shape)
    return written(data, where, updates, mode)
