"""In which number format the networks compute: float32, bfloat16 or float16, by autocast on any device.

Weights, losses, optimizers and averages stay float32. The recipe decides, not the launcher: ``accelerate
launch --mixed_precision`` has no effect here.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "no", "bf16", "fp16"]
"""``auto`` is bf16 where the processor computes it and ``no`` elsewhere; ``no`` is float32 throughout;
``fp16`` also scales the loss."""

_chosen: Precision = "auto"


@contextlib.contextmanager
def computing_in(precision: Precision) -> Iterator[None]:
    """Let every :func:`autocast` below compute in ``precision``; outside of this it is ``auto``."""
    global _chosen
    before, _chosen = _chosen, precision
    try:
        yield
    finally:
        _chosen = before


def autocast(device: torch.device, *, wide: bool = False) -> torch.autocast:
    """Return the autocast of the chosen precision on ``device``, for the body of a network's call.

    Args:
        device: where the network is.
        wide: whether its values may leave the range of float16; then it computes in float32 in its place.
    """
    import torch

    chosen = resolved(_chosen, device.type)
    dtype = torch.float16 if chosen == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=chosen != "no" and not (wide and chosen == "fp16"))


def resolved(precision: Precision, device: str) -> Precision:
    """Return what ``precision`` is on a kind of device (``cpu``, ``cuda``): ``auto`` becomes another one."""
    if precision != "auto":
        return precision
    return "bf16" if computes_bf16(device) else "no"


@functools.cache
def computes_bf16(device: str) -> bool:
    """Tell whether a kind of device has instructions for bfloat16; without, it is many times slower."""
    import torch

    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device == "cpu":
        return any(has is True for name, has in torch.cpu.get_capabilities().items() if name.endswith("bf16"))
    return False


class LossScale:
    """Dynamic loss scaling for float16 (arXiv 1710.03740, section 3.2): halved at an overflow, else doubled.

    A plain number, so that a resumed run has it bit for bit; the decision is taken on a gradient norm that
    all processes share, so it also holds where the weights are sharded.
    """

    def __init__(self, *, enabled: bool, growth_interval: int = 2000) -> None:
        self.enabled, self.growth_interval = enabled, growth_interval
        self.scale = 2.0**16 if enabled else 1.0
        self.good = 0

    def excuses(self) -> bool:
        """Tell whether a non-finite gradient may be the scale's fault."""
        return self.enabled and self.scale > 1

    def update(self, *, overflowed: bool) -> None:
        """Adapt the scale after a step."""
        if not self.enabled:
            return
        self.good = 0 if overflowed else self.good + 1
        if overflowed:
            self.scale = max(1.0, self.scale / 2)
        elif self.good == self.growth_interval:
            self.scale, self.good = self.scale * 2, 0
