"""Random numbers of one training step that do not depend on how its batch is divided.

A batch is dealt out in equal parts: processes times micro-batches. What is drawn here is drawn for the whole
batch from (seed, step) alone, and each part keeps its own rows. So two processes, or two micro-batches, see
exactly the numbers that one process with the whole batch sees; a run may be resumed with another number of
processes; and the numbers are the same on every device, because they are drawn on the CPU.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from flashbulb.distill.data.order import Turn

if TYPE_CHECKING:
    import torch

STEPS, PARTS = 1_000_003, 65_537
"""Primes that keep the keys of (seed, step, part) apart."""


class StepRng:
    """Random numbers of one part of one step's batch; all draws of a step come in the same order everywhere.

    Attributes:
        shared: a Python generator that is the same in all parts, for decisions of the whole batch.
        torch: a CPU generator of this part alone: what it draws changes when the batch is divided otherwise.
        python: likewise, a Python generator.
    """

    def __init__(
        self, seed: int, step: int, part: int = 0, parts: int = 1, device: torch.device | str = "cpu"
    ) -> None:
        """Take the ``part``-th of ``parts`` equal parts of a batch; tensors are returned on ``device``."""
        import torch

        if not 0 <= part < parts:
            raise ValueError(f"wanted a part in 0..{parts - 1}, got {part}")
        self.seed, self.step, self.part, self.parts, self.device = seed, step, part, parts, device
        self._lines = 0
        key = (seed * STEPS + step) * PARTS
        self._whole = torch.Generator().manual_seed(key)
        self.shared = random.Random(key)
        self.torch = torch.Generator().manual_seed(key + 1 + part)
        self.python = random.Random(key + 1 + part)

    def uniform(self, count: int) -> torch.Tensor:
        """Return numbers (count,) in [0, 1)."""
        import torch

        return self._mine(torch.rand(count * self.parts, generator=self._whole, device="cpu"))

    def integers(self, low: int, high: int, count: int) -> torch.Tensor:
        """Return integers (count,) in [low, high)."""
        import torch

        return self._mine(
            torch.randint(low, high, (count * self.parts,), generator=self._whole, device="cpu")
        )

    def stratified(self, count: int) -> torch.Tensor:
        """Return numbers (count,) in [0, 1): one from each of equal bins, one for each row of the batch."""
        import torch

        total = count * self.parts
        bins = torch.randperm(total, generator=self._whole, device="cpu")
        return self._mine((bins + torch.rand(total, generator=self._whole, device="cpu")) / total)

    def normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return normal numbers of ``shape`` (b, ...); each row comes from a seed of its own."""
        import torch

        generator = torch.Generator()
        rows = torch.empty(shape, device="cpu")
        for row, seed in zip(rows, self._seeds(shape[0]), strict=True):
            row.normal_(generator=generator.manual_seed(seed))
        return rows.to(self.device)

    def each(self, count: int) -> list[Turn]:
        """Return one Python generator for each of ``count`` rows; each knows its place in line."""
        first, total = self.part * count, self.parts * count
        line, self._lines = self._lines, self._lines + 1
        return [
            Turn(key, seed=self.seed, step=self.step, part=first + row, parts=total, stream=line)
            for row, key in enumerate(self._seeds(count))
        ]

    def _seeds(self, count: int) -> list[int]:
        import torch

        seeds = torch.randint(2**62, (count * self.parts,), generator=self._whole, device="cpu")
        mine: list[int] = seeds.view(self.parts, count)[self.part].tolist()
        return mine

    def _mine(self, whole: torch.Tensor) -> torch.Tensor:
        return whole.view(self.parts, -1)[self.part].to(self.device)
