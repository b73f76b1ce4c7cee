"""The training loop that every trainer shares: resume, EMA, statistics, checkpoints, NaN guard.

Randomness is a function of (seed, step, rank), never a running state, so a run that was killed continues with
the very same numbers. State is safetensors and JSON; nothing is pickled.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

OnStep = Callable[[int, int, dict[str, float]], None]
"""Called as ``on_step(step, steps, statistics)`` after every step."""


class LoopConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Length and bookkeeping of a training."""

    steps: Annotated[int, msgspec.Meta(gt=0)] = 1000
    """Optimizer steps."""
    batch: Annotated[int, msgspec.Meta(gt=0)] = 64
    """Pictures of one step, over all processes."""
    seed: int = 0
    """Seed of everything random."""
    ema: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.999
    """Decay of the exponential moving average of the weights."""
    warmup: Annotated[int, msgspec.Meta(ge=0)] = 100
    """Steps over which the learning rate rises linearly."""
    decay: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.3
    """Last share of the steps over which the learning rate falls to zero along a cosine."""
    save_every_s: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    """Seconds between two saved states."""
    log_every: Annotated[int, msgspec.Meta(gt=0)] = 20
    """Steps between two lines of ``stats.jsonl``."""
    max_skipped: Annotated[int, msgspec.Meta(ge=0)] = 20
    """Steps with a non-finite loss that are skipped before the training gives up."""


class Rank(msgspec.Struct, frozen=True):
    """Which process of how many this is."""

    index: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> Rank:
        """Read the rank from the environment that a launcher sets."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


class StepRng:
    """Random numbers of one step on one process: a torch generator and a Python one."""

    def __init__(self, seed: int, step: int, rank: int) -> None:
        import torch

        key = (seed * 1_000_003 + step) * 1_009 + rank
        self.torch = torch.Generator().manual_seed(key)
        self.python = random.Random(key)


def learning_rate(config: LoopConfig, step: int) -> float:
    """Return the factor of the learning rate: linear warm-up, constant, cosine to zero."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    tail = max(1, round(config.steps * config.decay))
    into = step - (config.steps - tail)
    return 1.0 if into <= 0 else 0.5 * (1 + math.cos(math.pi * into / tail))


class State:
    """Everything that a resumed run needs: modules, optimizers, EMA weights and the step."""

    def __init__(
        self,
        modules: Mapping[str, torch.nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        *,
        averaged: tuple[str, ...] = (),
    ) -> None:
        self.step = 0
        self.skipped = 0
        self.modules = dict(modules)
        self.optimizers = dict(optimizers)
        self.ema = {
            name: {k: v.detach().clone() for k, v in modules[name].state_dict().items()} for name in averaged
        }

    def update_ema(self, decay: float) -> None:
        """Move the averaged weights towards the present ones; young averages move faster."""
        import torch

        rate = 1 - min(decay, (1 + self.step) / (10 + self.step))
        for name, average in self.ema.items():
            present = self.modules[name].state_dict()
            moving = [k for k, v in average.items() if v.dtype.is_floating_point]
            torch._foreach_lerp_(
                [average[k] for k in moving], [present[k].detach().to(average[k]) for k in moving], rate
            )
            for key in average.keys() - set(moving):
                average[key].copy_(present[key])

    def save(self, folder: Path) -> None:
        """Write the state into ``folder`` as one safetensors file, renamed in when it is whole."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, torch.Tensor] = {}
        for name, module in self.modules.items():
            tensors |= {f"module/{name}/{k}": v for k, v in module.state_dict().items()}
        for name, average in self.ema.items():
            tensors |= {f"ema/{name}/{k}": v for k, v in average.items()}
        for name, optimizer in self.optimizers.items():
            tensors |= _optimizer_tensors(f"optimizer/{name}", optimizer)
        partial = folder / ".state.partial"
        save_file(
            {k: v.detach().contiguous().clone() for k, v in tensors.items()},
            partial,
            {"step": str(self.step), "skipped": str(self.skipped)},
        )
        os.replace(partial, folder / "state.safetensors")

    def load(self, folder: Path) -> bool:
        """Restore the state of ``folder``; return whether there was one."""
        from safetensors import safe_open

        file = folder / "state.safetensors"
        if not file.is_file():
            return False
        with safe_open(file, "pt") as opened:
            meta = opened.metadata()
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        for name, module in self.modules.items():
            module.load_state_dict(_under(tensors, f"module/{name}/"))
        self.ema = {name: _under(tensors, f"ema/{name}/") for name in self.ema}
        for name, optimizer in self.optimizers.items():
            _restore_optimizer(optimizer, _under(tensors, f"optimizer/{name}/"))
        self.step, self.skipped = int(meta["step"]), int(meta["skipped"])
        return True

    def use_ema(self) -> None:
        """Put the averaged weights into the modules."""
        for name, average in self.ema.items():
            self.modules[name].load_state_dict(average)


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    import torch

    state = optimizer.state_dict()["state"]
    return {
        f"{prefix}/{index}/{key}": torch.as_tensor(value)
        for index, entry in state.items()
        for key, value in entry.items()
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split("/")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def run_loop(
    config: LoopConfig,
    state: State,
    update: Callable[[int, StepRng], dict[str, float]],
    out: Path,
    *,
    on_step: OnStep | None = None,
    on_save: Callable[[int], None] | None = None,
) -> None:
    """Train: call ``update(step, rng)`` up to ``config.steps``; keep ``out/state`` and ``out/stats.jsonl``.

    ``update`` does forward, backward and optimizer steps and returns statistics; when a returned ``loss`` is
    not finite it must have left the weights alone.

    Raises:
        FloatingPointError: after ``config.max_skipped`` steps with a non-finite loss.
    """
    rank = Rank.current()

    # Continue where a killed run stopped.
    if state.load(out / "state"):
        log.info("resume at step %d of %d", state.step, config.steps)
    _truncate_stats(out / "stats.jsonl", state.step)
    saved, begun = time.monotonic(), time.monotonic()

    while state.step < config.steps:
        # One learning rate for the step.
        for optimizer in state.optimizers.values():
            for group in optimizer.param_groups:
                group.setdefault("base_lr", group["lr"])
                group["lr"] = group["base_lr"] * learning_rate(config, state.step)

        # One update with randomness that depends on (seed, step, rank) only.
        stats = update(state.step, StepRng(config.seed, state.step, rank.index))
        if not all(math.isfinite(v) for v in stats.values()):
            state.skipped += 1
            if state.skipped > config.max_skipped:
                raise FloatingPointError(
                    f"{state.skipped} steps with a non-finite loss; the last one: {stats}"
                )
        else:
            state.update_ema(config.ema)
        state.step += 1

        # Statistics, progress, state.
        if on_step is not None:
            on_step(state.step, config.steps, stats)
        if rank.index == 0 and (state.step % config.log_every == 0 or state.step == config.steps):
            _append_stats(out / "stats.jsonl", state, stats, time.monotonic() - begun)
        if rank.index == 0 and (time.monotonic() - saved > config.save_every_s or state.step == config.steps):
            state.save(out / "state")
            saved = time.monotonic()
            if on_save is not None:
                on_save(state.step)


def _append_stats(file: Path, state: State, stats: dict[str, float], seconds: float) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    record = {"step": state.step, "skipped": state.skipped, "wall_s": round(seconds, 1)} | stats
    with file.open("a") as handle:
        handle.write(json.dumps(record) + "\n")


def _truncate_stats(file: Path, step: int) -> None:
    """Drop the lines that a killed run wrote after its last saved state."""
    if not file.is_file() or Rank.current().index != 0:
        return
    lines = [line for line in file.read_text().splitlines() if line.endswith("}")]
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    partial = file.with_suffix(".partial")
    partial.write_text("".join(line + "\n" for line in kept))
    os.replace(partial, file)
