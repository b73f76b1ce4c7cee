"""Data-parallel processes: start them on this machine, or join those that a launcher started.

Two one-thread processes train faster on two cores than one process with two threads, whose OpenMP barriers
stall when anything else runs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import msgspec

log = logging.getLogger(__name__)


class Rank(msgspec.Struct, frozen=True):
    """Which process of how many this is."""

    index: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> Rank:
        """Read the rank from the environment that a launcher sets."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def launch(function: Callable[..., None], processes: int, *arguments: Any) -> None:
    """Run ``function(*arguments)`` in ``processes`` local workers, or here for one.

    Under ``torchrun`` and ``accelerate launch`` this process is one of theirs already and runs it here. On a
    machine with GPUs there are no more processes than GPUs.
    """
    wanted, processes = processes, planned(processes)
    if processes == 1 or "RANK" in os.environ:
        function(*arguments)
        return
    if processes < wanted:
        log.info("%d processes wanted, one for each GPU taken: %d", wanted, processes)
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


def planned(processes: int) -> int:
    """Return how many processes train: those of a launcher, or ``processes``, with GPUs one each at most."""
    import torch

    if "RANK" in os.environ:
        return Rank.current().count
    return min(processes, torch.cuda.device_count()) if torch.cuda.is_available() else processes


def join() -> Any:
    """Join the process group that a launcher announced, if any, and return accelerate's view of it.

    Returns:
        An ``accelerate.Accelerator``: the device of this process, CUDA's or the CPU, and its place among the
        others.

    Raises:
        RuntimeError: when accelerate counts other processes than the launcher announced.
    """
    logging.getLogger("torchao").setLevel(logging.ERROR)  # it warns of CUDA libraries

    import torch
    from accelerate import Accelerator

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    # precision.py casts. Without `cpu` accelerate takes CPU processes with a LOCAL_RANK for single ones.
    accelerator = Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available())
    if accelerator.num_processes != Rank.current().count:
        raise RuntimeError(
            f"wanted {Rank.current().count} processes, as WORLD_SIZE says, got {accelerator.num_processes}; "
            "join before anything else makes an Accelerator"
        )
    return accelerator
