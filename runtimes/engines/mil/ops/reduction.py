"""Sums and other reductions over some axes, or over all."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flashbulb.runtimes.engines.mil.table import Ints, op, register

Reduce = Callable[[Tensor, Ints, bool], Tensor]


def _mean(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    return torch.mean(x if x.is_floating_point() else x.to(torch.float32), axes, keep)


def _product(x: Tensor, axes: Ints, keep: bool) -> Tensor:
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


PLAIN: dict[str, Reduce] = {
    "reduce_l1_norm": lambda x, axes, keep: torch.sum(torch.abs(x), axes, keep),
    "reduce_l2_norm": lambda x, axes, keep: torch.sqrt(torch.sum(x * x, axes, keep)),
    "reduce_log_sum": lambda x, axes, keep: torch.log(torch.sum(x, axes, keep)),
    "reduce_log_sum_exp": lambda x, axes, keep: torch.logsumexp(x, axes, keep),
    "reduce_max": lambda x, axes, keep: torch.amax(x, axes, keep),
    "reduce_mean": _mean,
    "reduce_min": lambda x, axes, keep: torch.amin(x, axes, keep),
    "reduce_prod": _product,
    "reduce_sum": lambda x, axes, keep: torch.sum(x, axes, keep),
    "reduce_sum_square": lambda x, axes, keep: torch.sum(x * x, axes, keep),
}


def _over(reduce: Reduce) -> Callable[..., Tensor]:
    def apply(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
        return reduce(x, tuple(range(x.ndim)) if axes is None else axes, keep_dims)

    return apply


for _name, _reduce in PLAIN.items():
    register(_name, _over(_reduce))


@op("reduce_argmax", exact=True)
def reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Return where the greatest value is; of equal ones, the first."""
    return torch.argmax(x, axis, keep_dims)


@op("reduce_argmin", exact=True)
def reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    """Return where the least value is; of equal ones, the first."""
    return torch.argmin(x, axis, keep_dims)
