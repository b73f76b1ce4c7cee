"""The training loop that every trainer shares, flat: resume, learn, average, report, save.

Randomness is a function of (seed, step, part of the batch), never a running state, so a run that was killed
continues with the very same numbers. State is safetensors and JSON; nothing is pickled.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from flashbulb.distill.distributed import Rank
from flashbulb.distill.precision import Precision, computing_in
from flashbulb.distill.rng import StepRng
from flashbulb.distill.sharding import Sharding
from flashbulb.distill.state import State
from flashbulb.distill.tracking import Tracking

if TYPE_CHECKING:
    from flashbulb.distill.descent import Descent

__all__ = ["LoopConfig", "OnStep", "Rank", "State", "StepRng", "learning_rate", "run_loop"]

log = logging.getLogger(__name__)

OnStep = Callable[[int, int, dict[str, float]], None]
"""Called as ``on_step(step, steps, statistics)`` after every step."""


class LoopConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Length and bookkeeping of a training, and how its steps are computed."""

    steps: Annotated[int, msgspec.Meta(gt=0)] = 1000
    """Optimizer steps."""
    batch: Annotated[int, msgspec.Meta(gt=0)] = 64
    """Pictures of one step, over all processes and micro-batches."""
    seed: int = 0
    """Seed of everything random."""
    ema: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.999
    """Decay of the exponential moving average of the weights."""
    warmup: Annotated[int, msgspec.Meta(ge=0)] = 100
    """Steps over which the learning rate rises linearly."""
    decay: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.3
    """Last share of the steps over which the learning rate falls to zero along a cosine."""
    precision: Precision = "auto"
    """Numbers that the networks compute with; weights and optimizers are float32 always."""
    accumulate: Annotated[int, msgspec.Meta(gt=0)] = 1
    """Micro-batches whose gradients make one step; less memory, the same step."""
    checkpointing: bool = False
    """Whether the UNet keeps only its blocks' inputs and computes the rest again in the backward pass."""
    decode_batch: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Pictures decoded at a time, each time computed again in the backward pass; 0 decodes all at once."""
    sharding: Sharding = "none"
    """Whether each process has all of the student, or (``fsdp``) its share of weights and optimizer."""
    save_every_s: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    """Seconds between two saved states."""
    log_every: Annotated[int, msgspec.Meta(gt=0)] = 20
    """Steps between two lines of ``stats.jsonl``."""
    tensorboard: bool = False
    """Whether TensorBoard's curves are written too, into ``OUT/tensorboard``."""
    max_skipped: Annotated[int, msgspec.Meta(ge=0)] = 20
    """Steps with a non-finite loss or gradient that are skipped before the training gives up."""


def learning_rate(config: LoopConfig, step: int) -> float:
    """Return the factor of the learning rate: linear warm-up, constant, cosine to zero."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    tail = max(1, round(config.steps * config.decay))
    into = step - (config.steps - tail)
    return 1.0 if into <= 0 else 0.5 * (1 + math.cos(math.pi * into / tail))


def run_loop(
    config: LoopConfig,
    state: State,
    update: Callable[[int, StepRng], dict[str, float]],
    out: Path,
    descend: Descent,
    *,
    on_step: OnStep | None = None,
) -> None:
    """Train: call ``update(step, rng)`` up to ``config.steps``; keep ``out/state`` and ``out/stats.jsonl``.

    ``update`` computes the losses of one micro-batch of ``descend.batch`` pictures, hands each to ``descend``
    and returns statistics. What is not finite leaves the weights alone.

    Raises:
        FloatingPointError: after ``config.max_skipped`` steps with a non-finite loss or gradient.
    """
    first = descend.accelerator.is_main_process
    state.scale = descend.scale

    # Continue where a killed run stopped.
    if state.load(out / "state"):
        log.info("resume at step %d of %d", state.step, config.steps)
    descend.agree(state.step, out / "state")
    tracking = Tracking(out, step=state.step, tensorboard=config.tensorboard) if first else None
    saved = time.monotonic()

    while state.step < config.steps:
        _set_learning_rate(state, learning_rate(config, state.step))

        # One update for each micro-batch; the last one steps.
        with computing_in(config.precision):
            parts = [update(state.step, rng) for rng in descend.micro_batches(config.seed, state.step)]

        # What all processes know and decide together; the first one's clock says when to save.
        due = state.step + 1 == config.steps or time.monotonic() - saved > config.save_every_s
        stats, due = descend.mean(parts, flag=first and due)

        if descend.failed or not all(map(math.isfinite, stats.values())):
            _count_skipped(config, state, stats)
        else:
            state.update_ema(config.ema)
        state.step += 1

        # Statistics, progress, state.
        if on_step is not None:
            on_step(state.step, config.steps, stats)
        if tracking is not None and (state.step % config.log_every == 0 or state.step == config.steps):
            tracking.write(state.step, state.skipped, stats)
        if due:
            state.save(out / "state", write=first)
            saved = time.monotonic()
    if tracking is not None:
        tracking.close()


def _set_learning_rate(state: State, factor: float) -> None:
    for optimizer in state.optimizers.values():
        for group in optimizer.param_groups:
            group.setdefault("base_lr", group["lr"])
            group["lr"] = group["base_lr"] * factor


def _count_skipped(config: LoopConfig, state: State, stats: Mapping[str, float]) -> None:
    """Count a step that was not finite, within its bound."""
    state.skipped += 1
    if state.skipped > config.max_skipped:
        raise FloatingPointError(
            f"{state.skipped} steps with a non-finite loss or gradient; the last one: {stats}"
        )
