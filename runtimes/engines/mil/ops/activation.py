"""Activations."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from flashbulb.runtimes.engines.mil.table import op, register

Gelu = Literal["EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"]


def relu(x: Tensor) -> Tensor:
    """Return the greater of x and 0."""
    return torch.relu(x)


def relu6(x: Tensor) -> Tensor:
    """Bound values to [0, 6]."""
    return torch.clamp(x, 0.0, 6.0)


def sigmoid(x: Tensor) -> Tensor:
    """Return 1 / (1 + exp(-x))."""
    return torch.sigmoid(x)


def silu(x: Tensor) -> Tensor:
    """Return x * sigmoid(x)."""
    return F.silu(x)


def softplus(x: Tensor) -> Tensor:
    """Return log(1 + exp(x))."""
    return torch.logaddexp(x, torch.zeros((), dtype=x.dtype))


def softsign(x: Tensor) -> Tensor:
    """Return x / (1 + |x|)."""
    return F.softsign(x)


for _function in (relu, relu6, sigmoid, silu, softplus, softsign):
    register(_function.__name__, _function)


@op("clamped_relu")
def clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    """Return min(beta, x) for x >= 0, otherwise min(beta, alpha * x)."""
    return torch.clamp_max(torch.where(x >= 0, x, alpha * x), beta)


@op("elu")
def elu(x: Tensor, alpha: float) -> Tensor:
    """Return x for x > 0, otherwise alpha * (exp(x) - 1)."""
    return F.elu(x, alpha)


@op("gelu")
def gelu(x: Tensor, mode: Gelu = "EXACT") -> Tensor:
    """Return x times the normal distribution at x, exactly or approximated by tanh or sigmoid."""
    if mode == "EXACT":
        return F.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return F.gelu(x, approximate="tanh")
    return x * torch.sigmoid(1.702 * x)


@op("leaky_relu")
def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    """Return x for x >= 0, otherwise alpha * x."""
    return torch.where(x >= 0, x, alpha * x)


@op("linear_activation")
def linear_activation(x: Tensor, alpha: float, beta: float = 0.0) -> Tensor:
    """Return alpha * x + beta."""
    return alpha * x + beta


@op("prelu")
def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """Return x for x > 0, otherwise x times its channel's alpha."""
    return torch.where(x > 0, x, channelwise(alpha, x) * x)


@op("scaled_tanh")
def scaled_tanh(x: Tensor, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """Return alpha * tanh(beta * x)."""
    return alpha * torch.tanh(beta * x)


@op("sigmoid_hard")
def sigmoid_hard(x: Tensor, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """Return alpha * x + beta, bounded to [0, 1]."""
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


@op("softplus_parametric")
def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Return alpha * log(1 + exp(beta * x)), by channel."""
    return channelwise(alpha, x) * softplus(channelwise(beta, x) * x)


@op("softmax")
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Return exp(x) over its sum along an axis."""
    return torch.softmax(x, axis)


@op("thresholded_relu")
def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    """Return x where it is at least alpha, 0 elsewhere."""
    return torch.where(x >= alpha, x, torch.zeros((), dtype=x.dtype))


def channelwise(value: Tensor, x: Tensor) -> Tensor:
    """Shape one number per channel so that it broadcasts over x (b c ...)."""
    return value.reshape(-1, *[1] * (x.ndim - 2))
