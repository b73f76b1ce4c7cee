"""One optimizer step: backward, averaging over processes and micro-batches, clipping, and the step itself.

An objective calls ``descend(loss, optimizer)`` once for each of its optimizers; how many processes
and micro-batches stand behind the step is none of its business. Gradients are averaged in flat buckets after
the last backward, as adversarial trainers do it: networks stay plain modules, may be called any number of
times and in parts, and second derivatives (R1) pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flashbulb.distill.distributed import join
from flashbulb.distill.precision import LossScale
from flashbulb.distill.rng import StepRng
from flashbulb.distill.sharding import is_share, local, whole

if TYPE_CHECKING:
    import torch

    from flashbulb.distill.loop import LoopConfig

CLIP = 1.0
"""Largest norm of a gradient."""
BUCKET = 2**24
"""Numbers of gradient that travel together, at least."""


class Descent:
    """Steps optimizers down losses; shared by all optimizers of a training.

    Attributes:
        failed: whether a gradient of the present step was not finite, so that its optimizer did not step.
    """

    def __init__(self, config: LoopConfig) -> None:
        self.accelerator = join()
        self.accumulate = config.accumulate
        self.scale = LossScale(enabled=config.precision == "fp16")
        self.parts = self.accelerator.num_processes * config.accumulate
        self.batch = part_of_batch(config, self.accelerator.num_processes)
        self.failed = self._overflowed = False
        self._micro, self._stepped = 0, set[int]()

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device: torch.device = self.accelerator.device
        return device

    def micro_batches(self, seed: int, step: int) -> Iterator[StepRng]:
        """Yield the random numbers of each of this process's micro-batches of a step, in turn."""
        self.failed = self._overflowed = False
        for micro in range(self.accumulate):
            self._micro, self._stepped = micro, set()
            part = self.accelerator.process_index * self.accumulate + micro
            yield StepRng(seed, step, part, self.parts, self.device)
        self.scale.update(overflowed=self._overflowed)

    def __call__(self, loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> float | None:
        """Add the gradient of a micro-batch; after the last one step, unless the gradient is not finite.

        Args:
            loss: scalar, the mean over this process's micro-batch.
            optimizer: steps at most once in an update when gradients are accumulated.

        Returns:
            The norm of the gradient before clipping, or None when no step was taken.
        """
        self._once(optimizer)
        if self._micro == 0:
            optimizer.zero_grad()
        (loss * (self.scale.scale / self.accumulate)).backward()
        if self._micro < self.accumulate - 1:
            return None
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        if not gradients:
            raise ValueError("wanted a loss that depends on the optimizer's weights, got no gradient")
        average(gradients, self.accelerator.num_processes)
        return self._step(gradients, optimizer)

    def _step(self, gradients: list[torch.Tensor], optimizer: torch.optim.Optimizer) -> float | None:
        import torch
        from torch.nn.utils import get_total_norm

        if self.scale.enabled:
            torch._foreach_mul_([local(g) for g in gradients], 1 / self.scale.scale)
        total = whole(get_total_norm(gradients))  # of all shares, not of this process's
        torch._foreach_mul_([local(g) for g in gradients], (CLIP / (total + 1e-6)).clamp(max=1.0))
        norm = total.item()
        if math.isfinite(norm):
            optimizer.step()
            return norm
        self._overflowed = True
        self.failed = self.failed or not self.scale.excuses()
        return None

    def _once(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse a second step of an optimizer in a micro-batch: its gradients would be mixed."""
        if self.accumulate > 1 and id(optimizer) in self._stepped:
            raise ValueError(
                "wanted one step of each optimizer in an update, because gradients are accumulated; "
                "set accumulate to 1, or take one critic step"
            )
        self._stepped.add(id(optimizer))

    def agree(self, step: int, folder: Path) -> None:
        """Make sure that all processes resume at the same step.

        Raises:
            ValueError: when they do not see the same saved state.
        """
        import torch

        if self.accelerator.num_processes == 1:
            return
        found = torch.tensor([step, -step], device=self.device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        if found[0] != -found[1]:
            raise ValueError(
                f"wanted one saved state for all processes, got steps from {-found[1]} to {found[0]} in "
                f"{folder}; the run folder has to be on a file system that all machines share"
            )

    def mean(self, parts: list[dict[str, float]], flag: bool = False) -> tuple[dict[str, float], bool]:
        """Average the statistics of micro-batches and processes; also say whether any process raised a flag.

        All processes get the same answer, so they decide alike what it means.
        """
        import torch

        names = list({name: None for part in parts for name in part})
        found = [[part[name] for part in parts if name in part] for name in names]
        values = [math.fsum(v) / len(v) if all(map(math.isfinite, v)) else math.nan for v in found]
        if self.accelerator.num_processes == 1:
            return dict(zip(names, values, strict=True)), flag
        sent = torch.tensor([*values, float(flag)], dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(sent)
        *totals, flags = sent.tolist()
        count = self.accelerator.num_processes
        return {name: total / count for name, total in zip(names, totals, strict=True)}, flags > 0


def part_of_batch(config: LoopConfig, processes: int) -> int:
    """Return the pictures of one process's micro-batch.

    Raises:
        ValueError: when the batch cannot be divided so.
    """
    if config.batch % (processes * config.accumulate):
        raise ValueError(
            f"wanted a batch that {processes} processes times {config.accumulate} micro-batches divide, got "
            f"{config.batch}; change batch, processes or accumulate"
        )
    return config.batch // (processes * config.accumulate)


def average(gradients: list[torch.Tensor], processes: int) -> None:
    """Average the gradients over all processes, in flat buckets that travel while the next is packed.

    Shares of dealt-out weights are averaged already, in the backward pass.
    """
    import torch

    if processes == 1:
        return
    on_the_way = []
    for bucket in _buckets([g for g in gradients if not is_share(g)]):
        flat = torch.cat([g.flatten() for g in bucket])
        on_the_way.append((bucket, flat, torch.distributed.all_reduce(flat, async_op=True)))
    for bucket, flat, sending in on_the_way:
        sending.wait()
        flat /= processes
        for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    bucket: list[torch.Tensor] = []
    for gradient in gradients:
        bucket.append(gradient)
        if sum(g.numel() for g in bucket) >= BUCKET:
            yield bucket
            bucket = []
    if bucket:
        yield bucket
