"""Where few-step samplers step: the published sets of timesteps, as plain numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from flashbulb.distill.denoiser import Schedule

TimestepName = Literal["trailing", "sgm", "flow"]
SGM_SUBSET = (0, 100, 200, 300)
"""Offsets from the last timestep that Stability's turbo demo takes: 999, 899, 799, 699."""


def trailing(steps: int, total: int = 1000) -> list[int]:
    """Return timesteps spaced from the last one down (arXiv 2305.08891, table 2): 999 first."""
    return [round(total - i * total / steps) - 1 for i in range(steps)]


def sgm(steps: int, total: int = 1000) -> list[int]:
    """Return the early timesteps that SD-Turbo's first demo samples at, up to four: 999, 899, 799, 699.

    Raises:
        ValueError: for more than four steps.
    """
    if not 1 <= steps <= len(SGM_SUBSET):
        raise ValueError(f"wanted 1 to {len(SGM_SUBSET)} steps, got {steps}; use trailing timesteps for more")
    return [total - 1 - offset for offset in SGM_SUBSET[:steps]]


def flow(steps: int, schedule: Schedule) -> list[int]:
    """Return timesteps even in the time of a rectified flow, ``alpha / (alpha + sigma) = i / steps``.

    The first is the last of the schedule, where a flow holds noise only (arXiv 2209.03003); the others are
    the nearest that the schedule has.

    Raises:
        ValueError: for more steps than the schedule can tell apart.
    """
    times = schedule.alphas / (schedule.alphas + schedule.sigmas)
    found = [int((times - i / steps).abs().argmin()) for i in range(steps)]
    found[0] = schedule.terminal
    if len(set(found)) < steps:
        raise ValueError(
            f"wanted timesteps even in flow time, got {steps} steps, more than the schedule can tell apart: "
            f"it reaches from {float(times[-1]):.3f} to {float(times[0]):.3f}; "
            "take fewer steps or trailing timesteps"
        )
    return found


def choose_timesteps(name: TimestepName, steps: int, schedule: Schedule) -> list[int]:
    """Return the set of ``steps`` timesteps that goes by ``name``.

    Raises:
        ValueError: for a set that the schedule is too short for.
    """
    if name == "flow":
        return flow(steps, schedule)
    found = (trailing if name == "trailing" else sgm)(steps, schedule.terminal + 1)
    if min(found) < 0 or len(set(found)) < steps:
        raise ValueError(
            f"wanted {steps} {name} timesteps within 0..{schedule.terminal}, each once, got {found}; "
            "take fewer steps" + ("" if name == "trailing" else ", or trailing timesteps")
        )
    return found
