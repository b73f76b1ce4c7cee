"""Data-parallel processes: start them, and average gradients over them.

Two one-thread processes train faster on two cores than one process with two threads, whose OpenMP barriers
stall when anything else runs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def launch(function: Callable[..., None], processes: int, *arguments: Any) -> None:
    """Run ``function(*arguments)`` in ``processes`` elastic local workers (or here, for one)."""
    if processes == 1 or "RANK" in os.environ:
        function(*arguments)
        return
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id="flashbulb",
        max_restarts=0,
    )
    elastic_launch(config, function)(*arguments)


def join() -> None:
    """Join the process group that a launcher announced in the environment, if any."""
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it warns of CUDA libraries

    import torch
    import torch.distributed as dist

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Average the gradients over all processes, in one flat bucket."""
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
