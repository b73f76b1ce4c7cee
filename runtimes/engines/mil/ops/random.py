"""Random numbers: of the declared distribution, and the same for the same seed; not the ones of a device."""

from __future__ import annotations

import torch
from torch import Tensor

from flashbulb.runtimes.engines.mil.errors import ProgramError
from flashbulb.runtimes.engines.mil.table import Ints, bounded, op


def _generator(seed: int) -> torch.Generator:
    """Make a generator; -1 takes a new seed each time."""
    generator = torch.Generator()
    if seed == -1:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


@op("random_normal")
def random_normal(shape: Ints, mean: float = 0.0, stddev: float = 1.0, seed: int = -1) -> Tensor:
    """Draw normal numbers."""
    return torch.randn(bounded(shape), generator=_generator(seed)) * stddev + mean


@op("random_uniform")
def random_uniform(shape: Ints, low: float = 0.0, high: float = 1.0, seed: int = -1) -> Tensor:
    """Draw numbers in [low, high)."""
    return torch.rand(bounded(shape), generator=_generator(seed)) * (high - low) + low


@op("random_bernoulli")
def random_bernoulli(shape: Ints, prob: float = 0.5, seed: int = -1) -> Tensor:
    """Draw ones with a probability, else zeros."""
    return (torch.rand(bounded(shape), generator=_generator(seed)) < prob).to(torch.float32)


@op("random_categorical")
def random_categorical(x: Tensor, mode: str = "logits", size: int = 1, seed: int = -1) -> Tensor:
    """Draw indices of the last axis, with replacement."""
    if mode not in ("logits", "probs"):
        raise ProgramError(f"wanted logits or probs, got {mode!r}")
    weights = torch.softmax(x, -1) if mode == "logits" else x
    bounded([*x.shape[:-1], size])
    rows = weights.reshape(-1, x.shape[-1])
    drawn = torch.multinomial(rows, size, replacement=True, generator=_generator(seed))
    return drawn.reshape(*x.shape[:-1], size).to(torch.float32)
