"""Samplers with one signature: ``sampler(denoiser, noise, states, timesteps, ...) -> x0``.

All start from pure noise (scale 1) at the first timestep, so they are equal at one step. Between steps they
differ in how much of the old noise they keep: all of it (``ddim``), some (``euler_ancestral``, ``meng``) or
none (``renoise``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch

    from flashbulb.distill.denoiser import Denoiser

SamplerName = Literal["ddim", "euler", "euler_ancestral", "renoise", "meng"]
SGM_SUBSET = (0, 100, 200, 300)
"""Offsets from the last timestep that Stability's turbo demo takes: 999, 899, 799, 699."""


class Sampler(Protocol):
    """What every sampler looks like."""

    def __call__(
        self,
        denoiser: Denoiser,
        noise: torch.Tensor,
        states: torch.Tensor,
        timesteps: list[int],
        *,
        guidance: float = 1.0,
        null_states: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Return x0 (b, c, h, w) from noise (b, c, h, w) and text states (b, n, d)."""
        ...


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


def ddim(
    denoiser: Denoiser,
    noise: torch.Tensor,
    states: torch.Tensor,
    timesteps: list[int],
    *,
    guidance: float = 1.0,
    null_states: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Sample deterministically with DDIM (arXiv 2010.02502, eq. 12, eta = 0).

    An Euler step of the probability-flow ODE over sigma / alpha (arXiv 2206.00364) is the same step.
    """
    z = x0 = noise
    for now, following in _pairs(timesteps):
        x0 = denoiser(z, _at(z, now), states, guidance=guidance, null_states=null_states)
        if following is not None:
            z = _step(denoiser, z, x0, now, following)
    return x0


def euler_ancestral(
    denoiser: Denoiser,
    noise: torch.Tensor,
    states: torch.Tensor,
    timesteps: list[int],
    *,
    guidance: float = 1.0,
    null_states: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Sample with ancestral Euler steps, eta = 1 (the sampler of SDXL-Turbo).

    With s = sigma / alpha, a step from s to s' keeps noise of ``s' s' / s`` and draws the rest anew, so that
    the total is s' again.
    """
    import torch

    z = x0 = noise
    for now, following in _pairs(timesteps):
        x0 = denoiser(z, _at(z, now), states, guidance=guidance, null_states=null_states)
        if following is not None:
            eps = denoiser.schedule.to_eps(z, x0, _at(z, now))
            alpha, sigma = denoiser.schedule.at(_at(z, now))
            next_alpha, next_sigma = denoiser.schedule.at(_at(z, following))
            old, new = sigma / alpha, next_sigma / next_alpha
            down, up = new * new / old, new * (1 - (new / old) ** 2).sqrt()
            z = next_alpha * (x0 + down * eps + up * torch.randn(z.shape, generator=generator))
    return x0


def renoise(
    denoiser: Denoiser,
    noise: torch.Tensor,
    states: torch.Tensor,
    timesteps: list[int],
    *,
    guidance: float = 1.0,
    null_states: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Sample by predicting x0 and noising it anew (consistency sampling, arXiv 2303.01469, algorithm 1)."""
    import torch

    z = x0 = noise
    for now, following in _pairs(timesteps):
        x0 = denoiser(z, _at(z, now), states, guidance=guidance, null_states=null_states)
        if following is not None:
            alpha, sigma = denoiser.schedule.at(_at(z, following))
            z = alpha * x0 + sigma * torch.randn(z.shape, generator=generator)
    return x0


def meng(
    denoiser: Denoiser,
    noise: torch.Tensor,
    states: torch.Tensor,
    timesteps: list[int],
    *,
    guidance: float = 1.0,
    null_states: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Sample with the stochastic sampler of guided distillation (arXiv 2210.03142, section 4).

    Each step is a DDIM step of twice the length, followed by noise back up to the next timestep; the last one
    goes to x0.
    """
    import torch

    z = x0 = noise
    ends = [*timesteps[2:], None, None]
    for (now, following), end in zip(_pairs(timesteps), ends[: len(timesteps)], strict=True):
        x0 = denoiser(z, _at(z, now), states, guidance=guidance, null_states=null_states)
        if following is None:
            break
        alpha, sigma = denoiser.schedule.at(_at(z, following))
        low = x0 if end is None else _step(denoiser, z, x0, now, end)
        low_alpha, low_sigma = (1.0, 0.0) if end is None else denoiser.schedule.at(_at(z, end))
        ratio = alpha / low_alpha
        spread = (sigma**2 - ratio**2 * low_sigma**2).sqrt()
        z = ratio * low + spread * torch.randn(z.shape, generator=generator)
    return x0


SAMPLERS: dict[SamplerName, Sampler] = {
    "ddim": ddim,
    "euler": ddim,
    "euler_ancestral": euler_ancestral,
    "renoise": renoise,
    "meng": meng,
}


def _pairs(timesteps: list[int]) -> Any:
    """Return (now, following) for each timestep; nothing follows the last."""
    return zip(timesteps, [*timesteps[1:], None], strict=True)


def _at(z: torch.Tensor, timestep: int) -> torch.Tensor:
    import torch

    return torch.full((len(z),), timestep)


def _step(denoiser: Denoiser, z: torch.Tensor, x0: torch.Tensor, now: int, following: int) -> torch.Tensor:
    """Return z at the following timestep, with the noise that z holds now."""
    eps = denoiser.schedule.to_eps(z, x0, _at(z, now))
    alpha, sigma = denoiser.schedule.at(_at(z, following))
    return alpha * x0 + sigma * eps
