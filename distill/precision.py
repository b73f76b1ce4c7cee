"""In which number format the networks compute: float32, bfloat16 or float16, by autocast on any device.

Weights, losses, optimizers and averages stay float32. The recipe decides, not the launcher: ``accelerate
launch --mixed_precision`` has no effect here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["no", "bf16", "fp16"]
"""``no`` is float32 throughout; ``fp16`` also scales the loss."""

_chosen: Precision = "bf16"


@contextlib.contextmanager
def computing_in(precision: Precision) -> Iterator[None]:
    """Let every :func:`autocast` below compute in ``precision``; outside of this it is bf16."""
    global _chosen
    before, _chosen = _chosen, precision
    try:
        yield
    finally:
        _chosen = before


def autocast(device: torch.device) -> torch.autocast:
    """Return the autocast of the chosen precision on ``device``, for the body of a network's call."""
    import torch

    dtype = torch.float16 if _chosen == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=_chosen != "no")


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
