"""Lists of tensors of one shape, as loops fill them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashbulb.runtimes.engines.mil.dtypes import BY_NAME, held_dtype
from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.engines.mil.table import Things, bounded, op


@op("make_list", exact=True)
def make_list(
    init_length: int = 1, dynamic_length: bool = True, elem_shape: Things = (), dtype: str = "fp32"
) -> list[Any]:
    """Make a list of zeros; sizes that are only known later are given as text, and then it starts empty."""
    if dtype not in BY_NAME or not BY_NAME[dtype].held:
        raise ProgramError(f"wanted a type of {sorted(BY_NAME)}, got {dtype!r}")
    bounded([init_length])
    if any(isinstance(s, str) for s in elem_shape):
        return [None] * init_length
    zero = torch.zeros(bounded(elem_shape), dtype=held_dtype(BY_NAME[dtype]))
    return [zero] * init_length


@op("list_length", exact=True)
def list_length(ls: list[Any]) -> Tensor:
    """Return how many elements there are."""
    return torch.tensor(len(ls), dtype=torch.int32)


@op("list_write", exact=True)
def list_write(ls: list[Any], index: int, value: Tensor) -> list[Any]:
    """Return the list with one element replaced; it grows when it must."""
    return _with(ls, [index], [value])


@op("list_scatter", exact=True)
def list_scatter(ls: list[Any], indices: Tensor, value: Tensor) -> list[Any]:
    """Return the list with several elements replaced."""
    return _with(ls, indices.tolist(), list(value))


@op("list_read", exact=True)
def list_read(ls: list[Any], index: int) -> Tensor:
    """Return one element."""
    return _element(ls, index)


@op("list_gather", exact=True)
def list_gather(ls: list[Any], indices: Tensor) -> Tensor:
    """Return several elements in one tensor."""
    return torch.stack([_element(ls, int(i)) for i in indices])


def _element(ls: list[Any], index: int) -> Tensor:
    if not 0 <= index < len(ls) or ls[index] is None:
        raise ProgramError(f"wanted an element that was written, of {len(ls)}, got {index}")
    found: Tensor = ls[index]
    return found


def _with(ls: list[Any], indices: list[int], values: list[Tensor]) -> list[Any]:
    if indices and min(indices) < 0:
        raise ProgramError(f"wanted places in a list, got {min(indices)} to {max(indices)}")
    if indices:
        bounded([max(indices) + 1, max(1, values[0].numel())])
    found = ls + [torch.zeros_like(values[0])] * (max(indices, default=-1) + 1 - len(ls))
    for index, value in zip(indices, values, strict=True):
        found[index] = value
    return found
