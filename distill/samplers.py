"""Samplers with one signature: ``sampler(denoiser, noise, states, timesteps, ...) -> x0``.

All start from pure noise (scale 1) at the first timestep, so they are equal at one step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from flashbulb.distill.denoiser import Denoiser


def trailing(steps: int, total: int = 1000) -> list[int]:
    """Return timesteps spaced from the last one down (arXiv 2305.08891, table 2): 999 first."""
    return [round(total - i * total / steps) - 1 for i in range(steps)]


def ddim(
    denoiser: Denoiser,
    noise: torch.Tensor,
    states: torch.Tensor,
    timesteps: list[int],
    *,
    guidance: float = 1.0,
    null_states: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sample deterministically with DDIM (arXiv 2010.02502, eq. 12, eta = 0); return x0 (b, c, h, w)."""
    import torch

    z = x0 = noise
    for now, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        t = torch.full((len(z),), now)
        x0 = denoiser(z, t, states, guidance=guidance, null_states=null_states)
        if following is not None:
            eps = denoiser.schedule.to_eps(z, x0, t)
            alpha, sigma = denoiser.schedule.at(torch.full((len(z),), following))
            z = alpha * x0 + sigma * eps
    return x0


def renoise(
    denoiser: Denoiser,
    noise: torch.Tensor,
    states: torch.Tensor,
    timesteps: list[int],
    *,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Sample by predicting x0 and noising it anew (consistency sampling, arXiv 2303.01469, algorithm 1)."""
    import torch

    x0 = denoiser(noise, torch.full((len(noise),), timesteps[0]), states)
    for following in timesteps[1:]:
        t = torch.full((len(noise),), following)
        alpha, sigma = denoiser.schedule.at(t)
        x0 = denoiser(alpha * x0 + sigma * torch.randn(noise.shape, generator=generator), t, states)
    return x0
