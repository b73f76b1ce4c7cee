"""Normalisation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from flashbulb.runtimes.engines.mil.table import Ints, op


@op("batch_norm")
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """Normalise each channel of x (b c ...) by given moments."""
    return F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, epsilon)


@op("instance_norm")
def instance_norm(
    x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    """Normalise each channel of each picture of x (b c ...) by its own moments."""
    return torch.group_norm(x, x.shape[1], gamma, beta, epsilon, False)


@op("l2_norm")
def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Divide by the root of the sum of squares over the last three sizes."""
    return x / torch.sqrt(torch.sum(x * x, (-3, -2, -1), keepdim=True) + epsilon)


@op("layer_norm")
def layer_norm(
    x: Tensor,
    axes: Ints | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """Normalise over some axes; gamma and beta have the sizes of those axes."""
    chosen = sorted(a % x.ndim for a in (range(x.ndim) if axes is None else axes))
    if chosen == list(range(x.ndim - len(chosen), x.ndim)):
        return F.layer_norm(x, [x.shape[a] for a in chosen], gamma, beta, epsilon)
    variance, mean = torch.var_mean(x, chosen, correction=0, keepdim=True)
    found = (x - mean) * torch.rsqrt(variance + epsilon)
    shape = [s if i in chosen else 1 for i, s in enumerate(x.shape)]
    found = found if gamma is None else found * gamma.reshape(shape)
    return found if beta is None else found + beta.reshape(shape)


@op("local_response_norm")
def local_response_norm(
    x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """Divide by a power of the mean square of neighbouring channels."""
    if x.ndim == 3:  # the device takes the third axis from the end for the channels, here the first
        return F.local_response_norm(x[None], size, alpha, beta, k)[0]
    return F.local_response_norm(x, size, alpha, beta, k)
